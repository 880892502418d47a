package dataport

import (
	"encoding/binary"
	"errors"

	"github.com/cespare/xxhash/v2"
	"github.com/zeebo/xxh3"
)

func sum64(b []byte) []byte { return binary.LittleEndian.AppendUint64(nil, xxhash.Sum64(b)) }

func sumOf(b []byte) uint64 { return xxh3.Hash(b) }

func asRefused(err error, r **RefusedError) bool { return errors.As(err, r) }
