package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// examineDisk looks at the filesystem or the disk on which a file of the mirror is, or would be.
func examineDisk(d diskPlace) []finding {
	info, err := os.Stat(d.path)
	place := d.path
	switch {
	case errors.Is(err, fs.ErrNotExist):
		place = filepath.Dir(d.path)
		if _, err := os.Stat(place); err != nil {
			return []finding{{"disk", d.what, levelFail, err.Error(), "make the directory, or name another file"}}
		}
	case err != nil:
		return []finding{{"disk", d.what, levelFail, err.Error(), "is it readable for this user?"}}
	case info.Mode()&os.ModeDevice != 0:
		return []finding{{"disk", d.what, levelOK, d.path + " is a block device" + deviceCache(d.path), ""}}
	case !info.Mode().IsRegular():
		return []finding{{"disk", d.what, levelFail, d.path + " is neither a file nor a block device", "name another"}}
	}
	var f unix.Statfs_t
	if err := unix.Statfs(place, &f); err != nil {
		return []finding{{"disk", d.what, levelFail, fmt.Sprintf("%s: %v", place, err), ""}}
	}
	list := []finding{spaceFinding(d, allocated(d.path), int64(f.Bavail)*int64(f.Bsize))}
	if x, ok := filesystemFinding(d, int64(f.Type), noCow(d.path)); ok {
		list = append(list, x)
	}
	if d.what == "log" {
		list = append(list, syncFinding(filepath.Dir(d.path)))
	}
	return list
}

func deviceCache(path string) string {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return ""
	}
	return cacheWords(unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// allocated is what a file takes of its disk, 0 when there is none.
func allocated(path string) int64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// spaceFinding compares what a file may still grow with what is free.
func spaceFinding(d diskPlace, has, free int64) finding {
	f := finding{"disk", d.what, levelOK, fmt.Sprintf("%s: %s free", d.path, formatSize(free)), ""}
	wants := max(d.size-has, 0)
	switch {
	case d.what == "log" && has == 0 && d.size > free:
		f.Level, f.Do = levelFail, "a smaller --journal-size, or another disk: --journal"
		f.Says += fmt.Sprintf(", the log wants %s", formatSize(d.size))
	case d.what == "device" && wants > free:
		f.Level, f.Do = levelWarn, "it is sparse, and writes wait when its filesystem is full: free space, or a larger disk"
		f.Says += fmt.Sprintf(", it may still want %s", formatSize(wants))
	case d.what == "log" && free < 64<<20:
		f.Level, f.Do = levelWarn, "a resync is built beside the log, and bitmaps are kept there: free some"
	}
	return f
}

// Filesystems by statfs(2)'s magic numbers.
const (
	magicZFS      = 0x2fc12fc1
	magicBcachefs = 0xca451a4e
)

// filesystemFinding: does the filesystem do to the log what it is meant to have done? false: nothing needs to be said.
func filesystemFinding(d diskPlace, magic int64, noCow bool) (finding, bool) {
	f := finding{"disk", d.what, levelWarn, "", ""}
	switch magic & 0xffffffff {
	case unix.BTRFS_SUPER_MAGIC:
		if noCow {
			return finding{"disk", d.what, levelOK, "btrfs, and copying on write is off for it", ""}, true
		}
		f.Says, f.Do = "btrfs copies on write: every write in place costs space and time", "a new empty directory with chattr +C for it before it is made, or another filesystem"
	case magicZFS, magicBcachefs:
		f.Says, f.Do = "a filesystem that copies on write: every write in place costs space and time, and a full one fails writes of allocated files", "a raw partition or volume (--journal /dev/…), or ext4 or xfs"
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		f.Level, f.Says, f.Do = levelFail, "it is in memory: nothing survives a power cut", "a disk, outside of a laboratory"
	case unix.OVERLAYFS_SUPER_MAGIC:
		f.Says, f.Do = "an overlay, as of a container: it ends with that, and is slow", "a volume or a bind mount"
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		f.Says, f.Do = "a network or user-space filesystem: what it makes durable, and when, is another machine's or program's word", "a local disk"
	default:
		return f, false
	}
	return f, true
}

const flagNoCow = 0x00800000 // FS_NOCOW_FL

func noCow(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return err == nil && flags&flagNoCow != 0
}

const (
	syncTries   = 20
	slowSync    = 10 * time.Millisecond
	slowestSync = time.Second
)

// syncFinding measures what every FLUSH waits for: a write of 4 KiB into a file in dir and its fdatasync.
func syncFinding(dir string) finding {
	about := "fdatasync beside the log"
	f, err := os.CreateTemp(dir, ".mirror-agent-doctor-*")
	if err != nil {
		return finding{"disk", about, levelFail, err.Error(), "the agent's user has to be able to make files there"}
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4096)
	if _, err := f.Write(make([]byte, 64<<10)); err != nil {
		return finding{"disk", about, levelFail, err.Error(), "free some space"}
	}
	var took []time.Duration
	for i := range syncTries + 1 {
		began := time.Now()
		_, err := f.WriteAt(block, int64(i%16)*4096)
		if err == nil {
			err = unix.Fdatasync(int(f.Fd()))
		}
		if err != nil {
			return finding{"disk", about, levelFail, err.Error(), "look at the disk: dmesg"}
		}
		if i > 0 { // the first one allocates
			took = append(took, time.Since(began))
		}
	}
	var st unix.Stat_t
	_ = unix.Fstat(int(f.Fd()), &st)
	return syncVerdict(about, took, cacheWords(unix.Major(st.Dev), unix.Minor(st.Dev)))
}

// syncVerdict judges measured times.
func syncVerdict(about string, took []time.Duration, cache string) finding {
	slices.Sort(took)
	median, longest := took[len(took)/2], took[len(took)-1]
	f := finding{"disk", about, levelOK, fmt.Sprintf("median %s, longest of %d %s%s", formatSeconds(median.Seconds()), len(took), formatSeconds(longest.Seconds()), cache), ""}
	switch {
	case median >= slowSync:
		f.Level, f.Do = levelWarn, "every FLUSH, and every write in mode durable, waits as long: a faster disk for the log (--journal), with power-loss protection best"
	case longest >= slowestSync:
		f.Level, f.Do = levelWarn, "now and then a FLUSH waits as long: does something else use this disk?"
	}
	return f
}

// cacheWords says what the kernel knows of a disk's write cache; "" when there is no disk of that number.
func cacheWords(major, minor uint32) string {
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return ""
	}
	return cacheOf(dir)
}

func cacheOf(dir string) string {
	queue := filepath.Join(dir, "queue")
	if _, err := os.Stat(queue); err != nil {
		queue = filepath.Join(dir, "..", "queue") // a partition
	}
	cache, err := os.ReadFile(filepath.Join(queue, "write_cache"))
	if err != nil {
		return ""
	}
	words := map[string]string{
		"write back":    "; its disk has a write cache, which every fdatasync empties",
		"write through": "; its disk says that it has no write cache: where it has one (hdparm -W, a controller without a battery), fdatasync does not reach it",
	}[strings.TrimSpace(string(cache))]
	if rotates, err := os.ReadFile(filepath.Join(queue, "rotational")); err == nil && strings.TrimSpace(string(rotates)) == "1" {
		words += "; it calls itself a rotating disk"
	}
	return words
}
