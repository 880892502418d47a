package drill

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// A report's file:
//
//	{
//	  "report": …,                          the bytes that are signed, as they stand here
//	  "signature": {
//	    "algorithm": "ed25519",
//	    "key": "ed25519:…",                 of the node that ran the drill
//	    "value": "…"                        base64, over signedPrefix and those bytes
//	  }
//	}
//
// Only what encode writes is read: another order, another space, a field more is no report.

// signedPrefix keeps a signature of something else from being one of a report.
const signedPrefix = "mirror-agent drill report 1\n"

const algorithm = "ed25519"

type signature struct {
	Algorithm string `json:"algorithm"`
	Key       string `json:"key"`
	Value     []byte `json:"value"`
}

type envelope struct {
	Report    json.RawMessage `json:"report"`
	Signature signature       `json:"signature"`
}

// ErrNotSigned: the file is no report of a known node, or was changed.
var ErrNotSigned = errors.New("not a report as a known node has signed it")

// KeyName is a public key in the words of the command line.
func KeyName(k ed25519.PublicKey) string { return "ed25519:" + base64.RawStdEncoding.EncodeToString(k) }

// Encode returns the signed file of r.
func Encode(r *Report, key ed25519.PrivateKey) ([]byte, error) {
	raw, err := json.MarshalIndent(r, "  ", "  ")
	if err != nil {
		return nil, err
	}
	e := envelope{Report: raw, Signature: signature{
		Algorithm: algorithm, Key: KeyName(key.Public().(ed25519.PublicKey)), //nolint:forcetypeassert // of an Ed25519 key it is
		Value: ed25519.Sign(key, signed(raw)),
	}}
	return e.encode()
}

func signed(raw []byte) []byte { return append([]byte(signedPrefix), raw...) }

func (e *envelope) encode() ([]byte, error) {
	s, err := json.MarshalIndent(e.Signature, "  ", "  ")
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "{\n  \"report\": %s,\n  \"signature\": %s\n}\n", e.Report, s), nil
}

// Decode reads a report's file and says whose key it names. It proves nothing.
func Decode(file []byte) (r Report, key string, err error) {
	_, r, key, err = decode(file)
	return r, key, err
}

func decode(file []byte) (e envelope, r Report, key string, err error) {
	d := json.NewDecoder(bytes.NewReader(file))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		return e, r, "", fmt.Errorf("%w: %w", ErrNotSigned, err)
	}
	if err := json.Unmarshal(e.Report, &r); err != nil {
		return e, r, "", fmt.Errorf("%w: %w", ErrNotSigned, err)
	}
	if r.Version != reportVersion {
		return e, r, "", fmt.Errorf("a report of version %d, this program reads version %d", r.Version, reportVersion)
	}
	return e, r, e.Signature.Key, nil
}

// Verify reads a report's file and makes sure that one of the keys has signed it and that no byte was changed since.
func Verify(file []byte, keys []ed25519.PublicKey) (Report, error) {
	e, r, name, err := decode(file)
	if err != nil {
		return r, err
	}
	again, err := e.encode()
	if err != nil {
		return r, err
	}
	if !bytes.Equal(again, file) || e.Signature.Algorithm != algorithm {
		return r, fmt.Errorf("%w: the file is not as it was written", ErrNotSigned)
	}
	for _, k := range keys {
		if KeyName(k) != name {
			continue
		}
		if !ed25519.Verify(k, signed(e.Report), e.Signature.Value) {
			return r, fmt.Errorf("%w: the signature does not fit what it says: it was changed", ErrNotSigned)
		}
		return r, nil
	}
	return r, fmt.Errorf("%w: it names the key %s, which is none of those given (--peer-key)", ErrNotSigned, name)
}
