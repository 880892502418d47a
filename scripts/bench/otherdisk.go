package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

// otherDisk is where a log goes that shares no filesystem with its device.
type otherDisk struct {
	dir  string
	what string // for the caption
	loop bool   // it is a file on the same disk, through another filesystem: nothing is aimed at there
	end  func()
}

// where is a directory with what its filesystem says.
type where struct {
	dir    string
	device uint64
	free   uint64
	memory bool
}

func lookAt(dir string) (w where, err error) {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Stat(dir, &st), unix.Statfs(dir, &fs)); err != nil {
		return w, err
	}
	return where{dir, st.Dev, fs.Bavail * uint64(fs.Bsize), fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC}, nil
}

// elsewhere picks the first that is another filesystem than home and has room; memory is no disk.
func elsewhere(home where, candidates []where, room uint64) (where, bool) {
	for _, c := range candidates {
		if c.device != home.device && !c.memory && c.free >= room {
			return c, true
		}
	}
	return where{}, false
}

// otherDisk finds another filesystem than that of -dir: the one that the user named, one of the usual places, or a filesystem
// in a file of its own, which is the same disk below.
func (b *bench) otherDisk() (otherDisk, error) {
	room, err := humanize.ParseBytes(b.o.journal)
	if err != nil {
		return otherDisk{}, fmt.Errorf("-journal: %w", err)
	}
	room += 64 << 20
	home, err := lookAt(b.dir)
	if err != nil {
		return otherDisk{}, err
	}
	if b.o.journalDir != "" {
		named, err := lookAt(b.o.journalDir)
		if err != nil {
			return otherDisk{}, fmt.Errorf("-journal-dir: %w", err)
		}
		what := "in -journal-dir, another filesystem"
		switch {
		case named.memory:
			what = "in -journal-dir, which is memory and no disk"
		case named.device == home.device:
			what = "in -journal-dir, which is the same filesystem"
		}
		return otherDisk{dir: named.dir, what: what, end: func() {}}, nil
	}
	var candidates []where
	for _, dir := range []string{os.TempDir(), "/var/tmp", "/mnt", "/srv", "/home"} {
		if w, err := lookAt(dir); err == nil && unix.Access(dir, unix.W_OK) == nil {
			candidates = append(candidates, w)
		}
	}
	if w, ok := elsewhere(home, candidates, room); ok {
		return otherDisk{dir: w.dir, what: "on another filesystem, " + w.dir, end: func() {}}, nil
	}
	return b.loopDisk(room)
}

// loopDisk makes a filesystem in a file. It needs root.
func (b *bench) loopDisk(room uint64) (otherDisk, error) {
	image, dir := b.file("second.img"), b.file("second")
	for _, c := range [][]string{
		{"mkdir", "-p", dir},
		{"truncate", "-s", fmt.Sprint(room + 64<<20), image},
		{"mkfs.ext4", "-q", "-F", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return otherDisk{}, fmt.Errorf("a filesystem in a file (root may; or say -journal-dir): %s: %w: %s", c[0], err, out)
		}
	}
	return otherDisk{dir, "on a filesystem of its own in a file (loop), so the same disk below, by way of two filesystems", true, func() {
		_ = exec.Command("umount", dir).Run()
		_ = os.Remove(image)
	}}, nil
}
