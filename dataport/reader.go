package dataport

import (
	"io"
	"net"
)

// frameReader reads headers and payloads of one connection, by one goroutine. Small frames are taken in many at a time.
// A payload is read to where it belongs, without a copy, together with the header behind it; that needs readv and thus a
// connection without TLS. Where it cannot be had, a header that follows a bulky frame is read alone, so that what lies
// behind it is not copied either.
type frameReader struct {
	conn  io.Reader
	bulk  bulkReader // what is waited for; nil: it is all the same to it
	vec   bool       // conn is bulk
	buf   []byte
	r, w  int
	bulky bool // the last frame was: the next one is expected to be
	run   int  // of bulky frames, up to busyRun; the others shorten it
}

// bulkReader is a socket.Conn.
type bulkReader interface {
	ReadVec(first, second []byte) (int, error)
	Expect(busy bool)
}

// busyRun is so many bulky frames on end that more of them are expected.
const busyRun = 8

const (
	readerBytes = 64 << 10
	// bulkyBytes is the payload from which on a call of its own costs less than a copy.
	bulkyBytes = 16 << 10
)

// newFrameReader reads conn, which is raw or lies upon it.
func newFrameReader(conn io.Reader, raw net.Conn) *frameReader {
	f := &frameReader{conn: conn, buf: make([]byte, readerBytes)}
	if f.bulk, _ = raw.(bulkReader); f.bulk != nil {
		f.vec = conn == io.Reader(raw)
		f.bulk.Expect(false)
	}
	return f
}

// header returns the next header; it is valid until the next call.
func (f *frameReader) header() ([]byte, error) {
	for f.w-f.r < headerBytes {
		if f.r > 0 {
			f.w = copy(f.buf, f.buf[f.r:f.w])
			f.r = 0
		}
		to := f.buf[f.w:]
		if f.bulky {
			to = f.buf[f.w:headerBytes]
		}
		n, err := f.conn.Read(to)
		if f.w += n; n == 0 && err != nil {
			if f.w > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	b := f.buf[f.r : f.r+headerBytes]
	f.r += headerBytes
	return b, nil
}

// expect says how long the payload is that is read next.
func (f *frameReader) expect(payload uint32) {
	f.bulky = payload >= bulkyBytes
	before := f.run == busyRun
	if f.bulky {
		f.run = min(f.run+1, busyRun)
	} else {
		f.run = max(f.run-1, 0)
	}
	if now := f.run == busyRun; now != before && f.bulk != nil {
		f.bulk.Expect(now)
	}
}

// more reports whether the next header is here already.
func (f *frameReader) more() bool { return f.w-f.r >= headerBytes }

// Read reads payload: to is what is left of it.
func (f *frameReader) Read(to []byte) (int, error) {
	if f.r < f.w {
		n := copy(to, f.buf[f.r:f.w])
		f.r += n
		return n, nil
	}
	f.r, f.w = 0, 0
	switch {
	case len(to) >= bulkyBytes && f.vec:
		n, err := f.bulk.ReadVec(to, f.buf[:headerBytes])
		if n > len(to) {
			f.w, n = n-len(to), len(to)
		}
		return n, err
	case f.bulky || len(to) >= len(f.buf):
		return f.conn.Read(to)
	}
	n, err := f.conn.Read(f.buf)
	f.w = n
	f.r = copy(to, f.buf[:n])
	return f.r, err
}
