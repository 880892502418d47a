package blockdev

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFaultRules(t *testing.T) {
	write := func(off int64) func(*Faulty) error {
		return func(f *Faulty) error { _, err := f.WriteAt(make([]byte, 512), off); return err }
	}
	read := func(off int64) func(*Faulty) error {
		return func(f *Faulty) error { _, err := f.ReadAt(make([]byte, 512), off); return err }
	}
	sync := (*Faulty).Sync
	zero := func(f *Faulty) error { return f.Zero(0, 512) }
	trim := func(f *Faulty) error { return f.Trim(0, 512) }
	for _, c := range []struct {
		name string
		rule Rule
		ops  []func(*Faulty) error
		fail []bool
	}{
		{
			"the second write only",
			Rule{Op: OpWrite, Nth: 2, Times: 1, Err: unix.EIO},
			[]func(*Faulty) error{write(0), read(0), write(0), write(0)},
			[]bool{false, false, true, false},
		},
		{
			"from the second on",
			Rule{Op: OpRead, Nth: 2, Err: unix.EIO},
			[]func(*Faulty) error{read(0), write(0), read(0), read(0)},
			[]bool{false, false, true, true},
		},
		{
			"a range",
			Rule{Op: OpWrite, Offset: 1000, Length: 100, Err: unix.EIO},
			[]func(*Faulty) error{write(0), write(512), write(1024), write(1100), sync},
			[]bool{false, true, true, false, false},
		},
		{
			"everything once",
			Rule{Op: OpAny, Times: 1, Err: unix.EIO},
			[]func(*Faulty) error{zero, trim, sync, write(0)},
			[]bool{true, false, false, false},
		},
		{
			"trim",
			Rule{Op: OpTrim, Err: unix.EIO},
			[]func(*Faulty) error{trim, zero, sync},
			[]bool{true, false, false},
		},
		{"zero", Rule{Op: OpZero, Err: unix.EIO}, []func(*Faulty) error{trim, zero}, []bool{false, true}},
		{"sync", Rule{Op: OpSync, Nth: 2, Times: 1, Err: unix.EIO}, []func(*Faulty) error{sync, sync, sync}, []bool{false, true, false}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := NewFaulty(NewMemory(4096, nil), c.rule)
			for i, op := range c.ops {
				if err := op(f); errors.Is(err, unix.EIO) != c.fail[i] {
					t.Errorf("operation %d: %v", i+1, err)
				}
			}
			f.Set()
			for i, op := range c.ops {
				if err := op(f); err != nil {
					t.Errorf("without rules, operation %d: %v", i+1, err)
				}
			}
		})
	}
}

func TestShortWrite(t *testing.T) {
	m := NewMemory(4096, nil)
	f := NewFaulty(m, Rule{Op: OpWrite, Short: 3})
	if n, err := f.WritevAt([][]byte{{1, 2}, {3, 4}, {5}}, 10); n != 3 || !errors.Is(err, io.ErrShortWrite) {
		t.Fatal(n, err)
	}
	var got [5]byte
	m.ReadAt(got[:], 10)
	if got != [5]byte{1, 2, 3} {
		t.Fatal(got)
	}
	f.Set(Rule{Op: OpRead, Short: 1, Err: unix.EIO})
	if n, err := f.ReadAt(got[:], 10); n != 1 || !errors.Is(err, unix.EIO) {
		t.Fatal(n, err)
	}
}

func TestHookWaitsWithoutALock(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	f := NewFaulty(NewMemory(4096, nil), Rule{Op: OpSync, Hook: func(op Op, _, _ int64) error {
		entered <- struct{}{}
		<-leave
		return unix.ENOSPC
	}})
	done := make(chan error)
	go func() { done <- f.Sync() }()
	<-entered
	if _, err := f.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal("a write beside a waiting sync:", err)
	}
	close(leave)
	if err := <-done; !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}
