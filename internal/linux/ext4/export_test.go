package ext4

// Length is how long the file of a file system for size bytes of data is.
func Length(size int64) (int64, error) {
	l, err := plan(size)
	return int64(l.blocks) * blockSize, err
}
