package launch

const (
	sysSetns   = 268
	sysDup3    = 24
	sysGetcwd  = 17
	sysFstatfs = 44
	sysStatx   = 291
)

const oDirectory = 0x4000
