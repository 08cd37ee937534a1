package launch

const (
	sysSetns   = 308
	sysDup3    = 292
	sysGetcwd  = 79
	sysFstatfs = 138
	sysStatx   = 332
)

const oDirectory = 0x10000
