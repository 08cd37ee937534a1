#include "textflag.h"

// func handler()
TEXT ·handler(SB), NOSPLIT|NOFRAME, $0
	RET

// func restorer(): rt_sigreturn
TEXT ·restorer(SB), NOSPLIT|NOFRAME, $0
	MOVQ $15, AX
	SYSCALL
	INT $3
