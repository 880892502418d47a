package dataport

import (
	"encoding/binary"
	"errors"

	"github.com/cespare/xxhash/v2"
)

func sum64(b []byte) []byte { return binary.LittleEndian.AppendUint64(nil, xxhash.Sum64(b)) }

func sumOf(b []byte) uint64 { return xxhash.Sum64(b) }

func asRefused(err error, r **RefusedError) bool { return errors.As(err, r) }
