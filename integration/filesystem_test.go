package integration

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFilesystem puts real filesystems on the mirrored device: what fsck and a
// tree of hashes find on the source's device, they find on the target's.
func TestFilesystem(t *testing.T) {
	needRoot(t, "loop devices and mounts")
	needTools(t, "nbdfuse", "losetup", "mkfs.ext4", "mkfs.xfs", "fusermount3")
	for _, kind := range []struct {
		name       string
		size       int64
		mkfs, fsck []string
	}{
		{"ext4", 96 << 20, []string{"mkfs.ext4", "-q", "-F"}, []string{"e2fsck", "-fn"}},
		{"xfs", 320 << 20, []string{"mkfs.xfs", "-q", "-f"}, []string{"xfs_repair", "-n"}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			m := newMirror(t, layout{size: kind.size, paths: 2})
			m.start()
			dev, detach := loopDevice(t, m.source.nbd)
			tool(t, kind.mkfs[0], append(kind.mkfs[1:], dev)...)
			dir := filepath.Join(shortDir(t), "mnt")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			unmount := mountAt(t, dev, dir)
			wrote := writeTree(t, dir)
			tool(t, "fstrim", dir)
			unmount()
			tool(t, kind.fsck[0], append(kind.fsck[1:], dev)...)
			// Once more from the device: read back through the mirror.
			unmount = mountAt(t, dev, dir)
			checkEqual(t, "tree read back from the source", hashTree(t, dir), wrote)
			unmount()
			detach()
			if s := m.source.mustStatus(); s.NBD.Flushes == 0 {
				t.Error("no FLUSH ever came")
			}
			m.stopLevel("target")

			// The target's device is a filesystem of its own right.
			tool(t, kind.fsck[0], append(kind.fsck[1:], m.target.device)...)
			loop := strings.TrimSpace(tool(t, "losetup", "-f", "--show", m.target.device))
			t.Cleanup(func() { tryTool(toolTimeout, "losetup", "-d", loop) })
			unmount = mountAt(t, loop, dir)
			checkEqual(t, "tree on the target's device", hashTree(t, dir), wrote)
			unmount()
		})
	}
}

// mountAt mounts and returns what unmounts.
func mountAt(t testing.TB, dev, dir string) func() {
	t.Helper()
	tool(t, "mount", dev, dir)
	mounted := true
	t.Cleanup(func() {
		if mounted {
			tryTool(toolTimeout, "umount", dir)
		}
	})
	return func() {
		t.Helper()
		tool(t, "umount", dir)
		mounted = false
	}
}

// writeTree makes files of many sizes with renames, removals, holes and fsyncs,
// and returns the tree's hash.
func writeTree(t testing.TB, root string) string {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 120 {
		dir := filepath.Join(root, fmt.Sprintf("d%d", i%7), fmt.Sprintf("e%d", i%3))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, r.IntN(200_000))
		for j := range p {
			p[j] = byte(r.Uint32())
		}
		name := filepath.Join(dir, fmt.Sprintf("f%d", i))
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(p, int64(r.IntN(2))*1<<20); err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		switch i % 10 {
		case 3:
			err = os.Rename(name, name+".renamed")
		case 7:
			err = os.Remove(name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return hashTree(t, root)
}

func hashTree(t testing.TB, root string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == "lost+found" {
			return err
		}
		fmt.Fprintln(h, strings.TrimPrefix(path, root), d.Type())
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		h.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:12])
}
