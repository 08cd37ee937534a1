package bake

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"net/url"
)

func md5sum(s string) (string, error) {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:]), nil
}

func sha1sum(s string) (string, error) {
	sum := sha1.Sum([]byte(s))
	return hex.EncodeToString(sum[:]), nil
}

func sha256sum(s string) (string, error) {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:]), nil
}

func sha512sum(s string) (string, error) {
	sum := sha512.Sum512([]byte(s))
	return hex.EncodeToString(sum[:]), nil
}

func base64encode(s string) (string, error) { return base64.StdEncoding.EncodeToString([]byte(s)), nil }

func base64decode(s string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(s)
	return string(data), err
}

func urlencode(s string) (string, error) { return url.QueryEscape(s), nil }
