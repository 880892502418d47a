package integration

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"
)

// diary is the ledger of a process that is going to be killed: every line is in
// the hands of the system before the message goes out, or before its receipt can.
//
//	what (1)  stream (1)  inbound (1)  session (16)  number (8)  hash (8)
type diary struct{ file *os.File }

const diaryLine = 35

// What a line of the diary is.
const (
	diaryReceived byte = iota
	diarySent
	diaryTakenBack // the last line of this book is void
)

func openDiary(path, client string) (*diary, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path+"."+client, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &diary{f}, err
}

func (d *diary) note(k bookKey, number, hash uint64) {
	what := diaryReceived
	if k.Sent {
		what = diarySent
	}
	d.write(what, k, number, hash)
}

func (d *diary) takeBack(k bookKey) { d.write(diaryTakenBack, k, 0, 0) }

func (d *diary) write(what byte, k bookKey, number, hash uint64) {
	if d == nil {
		return
	}
	p := append(make([]byte, 0, diaryLine), what, k.Stream, 0)
	if k.Inbound {
		p[2] = 1
	}
	p = append(p, k.Session...)
	p = binary.LittleEndian.AppendUint64(p, number)
	p = binary.LittleEndian.AppendUint64(p, hash)
	if _, err := d.file.Write(p); err != nil {
		panic(fmt.Sprintf("diary: %v", err))
	}
}

// readDiary returns what a killed process had in its books.
func readDiary(t testing.TB, path, client string) []bookPage {
	t.Helper()
	p, err := os.ReadFile(path + "." + client)
	if err != nil {
		t.Fatal(err)
	}
	index := map[bookKey]int{}
	var pages []bookPage
	for ; len(p) >= diaryLine; p = p[diaryLine:] {
		k := bookKey{Session: string(p[3:19]), Stream: p[1], Sent: p[0] != diaryReceived, Inbound: p[2] == 1}
		i, ok := index[k]
		if !ok {
			i = len(pages)
			index[k] = i
			pages = append(pages, bookPage{bookKey: k})
		}
		if p[0] == diaryTakenBack {
			pages[i].Lines = pages[i].Lines[:len(pages[i].Lines)-16]
			continue
		}
		pages[i].Lines = append(pages[i].Lines, p[19:diaryLine]...)
	}
	return pages
}
