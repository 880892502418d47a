package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// faultDiskFull: the target's device is on a filesystem that has no space left. Everything is in its log; it goes on by itself.
func faultDiskFull(c *cell) {
	fs := newTinyFilesystem(c.t, 64<<20)
	c.target.device = filepath.Join(fs.dir, "dev.img")
	c.target.flag("--device", c.target.device)
	c.begin()
	fs.fill(128 << 10)
	c.target.untilState("device full", "no space left on device", "free space")
	c.source.until(portLimit, "says that the target's device is full", func(s *status) bool { return s.hasAlarm("target-device-full") })
	c.client.more(c.t, 100)
	c.says(c.source, "in sync")
	c.judgeBurnt(c.target, c.now(), promised(c.mode))
	fs.free()
	c.target.until(portLimit, "goes on by itself", func(s *status) bool { return s.State == streaming && !s.hasAlarm("device full") })
	c.noResync(c.source)
	c.finish(c.source, "target", c.target)
}

// faultDiskError: every write to the target's device fails. The target stops before it says anything that is not so; what its disks
// have is promotable elsewhere, and with a good disk it goes on.
func faultDiskError(c *cell) {
	disk := newFailingDisk(c.t, c.dir, cellBytes)
	c.target.device = disk.file
	c.target.flag("--device", disk.file)
	c.target.args = append(c.target.args, "--adopt")
	c.begin()
	disk.fail()
	k := c.now()
	c.says(c.target, "failed", "mend the disk")
	c.alarmed()
	c.client.more(c.t, 100)
	c.judgeBurnt(c.target, k, promised(c.mode))
	c.target.kill()
	disk.mend()
	c.target.start()
	c.source.untilStreaming("target")
	c.finish(c.source, "target", c.target)
}

// failingDisk is a device's file whose writes fail on order: nbdkit's error filter behind nbdfuse.
type failingDisk struct {
	t             testing.TB
	file, trigger string
}

func newFailingDisk(t testing.TB, dir string, size int64) *failingDisk {
	t.Helper()
	needRoot(t, "a FUSE mount that others may use")
	needTools(t, "nbdkit", "nbdfuse", "fusermount3")
	image, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "disk.nbd")
	writeFile(t, image, "")
	truncate(t, image, size)
	d := &failingDisk{t: t, trigger: filepath.Join(dir, "disk.fails")}
	background(t, "nbdkit", "-f", "-U", socket, "--filter=error", "file", image,
		"error-pwrite-rate=100%", "error-pwrite-file="+d.trigger, "error-zero-rate=100%", "error-zero-file="+d.trigger,
		"error-trim-rate=100%", "error-trim-file="+d.trigger)
	eventually(t, startLimit, "nbdkit listens", func() (bool, string) {
		_, err := os.Stat(socket)
		return err == nil, fmt.Sprint(err)
	})
	d.file = fuseFile(t, nil, "unix:"+socket)
	return d
}

func (d *failingDisk) fail() { d.t.Helper(); writeFile(d.t, d.trigger, "") }

func (d *failingDisk) mend() {
	d.t.Helper()
	if err := os.Remove(d.trigger); err != nil {
		d.t.Fatal(err)
	}
}
