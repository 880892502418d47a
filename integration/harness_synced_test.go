package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// syncedFiles is an ext4 in use by somebody who keeps his documents as programs
// do: a new version is written beside the old one, fsynced, renamed over it, and
// the directory fsynced. So each document is whole at any time, in the version
// that was the last to be answered for, or a newer one.
type syncedFiles struct {
	t       testing.TB
	size    int64 // of the filesystem, at the beginning of the device
	seed    uint64
	unmount func()
	detach  func()

	end   func() // of the work
	ended chan struct{}
	left  bool

	mu     sync.Mutex // guards below
	newest int        // the version that was begun last
	failed error      // why the work has ended by itself
	synced [syncedSlots]int
}

const syncedSlots = 24

// makeExt4 makes a device's file with an empty filesystem in its first part.
func makeExt4(t testing.TB, file string, part, size int64) {
	t.Helper()
	writeFile(t, file, "")
	truncate(t, file, part)
	tool(t, "mkfs.ext4", "-q", "-F", file)
	truncate(t, file, size)
}

// useFiles mounts the filesystem of an NBD address and begins to work in it.
func useFiles(t testing.TB, inside []string, addr string, size int64, seed uint64, pause time.Duration) *syncedFiles {
	t.Helper()
	s := &syncedFiles{t: t, size: size, seed: seed, ended: make(chan struct{})}
	stopped := make(chan struct{})
	s.end = sync.OnceFunc(func() { close(stopped) })
	dir := filepath.Join(shortDir(t), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var dev string
	dev, s.detach = loopDeviceFrom(t, inside, addr)
	s.unmount = mountAt(t, dev, dir)
	t.Cleanup(func() {
		s.end()
		<-s.ended
	})
	go func() {
		defer close(s.ended)
		for {
			if err := s.save(dir); err != nil { // the device has gone, which the test knows of
				s.mu.Lock()
				s.failed = err
				s.mu.Unlock()
				return
			}
			select {
			case <-stopped:
				return
			case <-time.After(pause): // its pace
			}
		}
	}()
	return s
}

func documentName(slot int) string { return "document" + strconv.Itoa(slot) }

// document is what a version of a slot holds.
func (s *syncedFiles) document(version int) []byte {
	l := ledger{seed: s.seed}
	p := make([]byte, 16+version%7*4096)
	l.pattern(p, version%syncedSlots, uint64(version))
	return p
}

func (s *syncedFiles) save(dir string) error {
	s.mu.Lock()
	s.newest++
	version := s.newest
	s.mu.Unlock()
	name := filepath.Join(dir, documentName(version%syncedSlots))
	err := func() error {
		f, err := os.Create(name + ".new")
		if err != nil {
			return err
		}
		_, err = f.Write(s.document(version))
		return errors.Join(err, f.Sync(), f.Close())
	}()
	if err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced[version%syncedSlots] = version
	return nil
}

// moment is which version of each document was answered for.
func (s *syncedFiles) moment() [syncedSlots]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced
}

func (s *syncedFiles) untilSynced(version int) {
	s.t.Helper()
	eventually(s.t, workLimit, fmt.Sprintf("version %d is synced", version), func() (bool, string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.synced[version%syncedSlots] >= version, fmt.Sprint(s.newest, s.failed)
	})
}

// leave ends the work and unmounts, also when the device has gone; once.
func (s *syncedFiles) leave() {
	s.t.Helper()
	if s.left {
		return
	}
	s.left = true
	s.end()
	<-s.ended
	s.unmount()
	s.detach()
}

// judge takes a copy of the filesystem, replays its journal, has it checked, and compares all documents with those of a moment:
// none may be older or torn. It returns how many are older, and the versions that are there.
func (s *syncedFiles) judge(t testing.TB, read func(off int64, p []byte) error, m [syncedSlots]int) (older int, there [syncedSlots]int, err error) {
	t.Helper()
	dir := shortDir(t)
	image := filepath.Join(dir, "fs")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	for off := int64(0); off < s.size && err == nil; off += int64(len(p)) {
		if err = read(off, p); err == nil {
			_, err = f.WriteAt(p, off)
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, there, fmt.Errorf("copy the filesystem: %w", err)
	}
	defer os.RemoveAll(dir)
	var exit *exec.ExitError
	if out, err := tryTool(toolTimeout, "e2fsck", "-fy", "-E", "journal_only", image); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) { // 1: replayed
		return 0, there, fmt.Errorf("replay the journal: %w\n%s", err, out)
	}
	if out, err := tryTool(toolTimeout, "e2fsck", "-fn", image); err != nil {
		return 0, there, fmt.Errorf("fsck: %w\n%s", err, out)
	}
	tool(t, "debugfs", "-R", "rdump / "+dir, image)
	s.mu.Lock()
	newest := s.newest
	s.mu.Unlock()
	for slot, version := range m {
		got, err := os.ReadFile(filepath.Join(dir, documentName(slot)))
		switch {
		case errors.Is(err, os.ErrNotExist) && version == 0:
			continue
		case errors.Is(err, os.ErrNotExist):
			older++
			continue
		case err != nil:
			t.Fatal(err)
		}
		have := 0
		if len(got) >= 8 {
			have = int(binary.LittleEndian.Uint64(got))
		}
		if have <= 0 || have > newest || have%syncedSlots != slot || !bytes.Equal(got, s.document(have)) {
			return older, there, fmt.Errorf("%s, of version %d, is torn or not what was written there: %d bytes", documentName(slot), have, len(got))
		}
		there[slot] = have
		if have < version {
			older++
		}
	}
	return older, there, nil
}

// adopt makes what is there the truth: what is newer must never be seen again. The work has ended.
func (s *syncedFiles) adopt(there [syncedSlots]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced, s.newest = there, slices.Max(there[:])
}

// deviceFile reads a device from its file.
func deviceFile(t testing.TB, path string) func(off int64, p []byte) error {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func(off int64, p []byte) error {
		_, err := f.ReadAt(p, off)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s is short: %w", path, err)
		}
		return err
	}
}
