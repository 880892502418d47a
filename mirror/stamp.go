package mirror

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"mirror-agent/journal"
)

// A device file bears a mark, an extended attribute: the mirror's name, its uuid ("-" while unknown), and a stamp. The journal's
// anchor has the stamp too. It is a new random one after every start and every orderly end, so that a device or
// a journal that was put back from an older copy is told from the one that belongs to the other, and a device of
// another volume of the same mirror as well.
//
//	anchor: stamp A, pending –      device: A
//	anchor: stamp A, pending B      device: A    either is right: a crash may come here
//	anchor: stamp A, pending B      device: B    or here
//	anchor: stamp B, pending –      device: B
//
// Not seen: a copy of both, taken and put back together, which is a volume of its own. A copy of one taken while the agent ran, put
// back after a crash of the same run, and what lies on a block device, or a filesystem, that has no attributes, are told by their
// content (witness.go).
const deviceAttribute = "user.mirror-agent"

// mark is what a device file bears.
type mark struct{ name, mirror, stamp string }

func (m mark) String() string { return m.name + " " + m.mirror + " " + m.stamp }

// readMark returns the mark of the file at path; known says whether it can bear one.
func readMark(path string) (m mark, known bool) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return m, false // what lies in /dev says that it has none, and takes none
	}
	b := make([]byte, 256)
	n, err := unix.Getxattr(path, deviceAttribute, b)
	if err != nil {
		return m, errors.Is(err, unix.ENODATA)
	}
	f := strings.Fields(string(b[:n]))
	for i, field := range []*string{&m.name, &m.mirror, &m.stamp} {
		if i < len(f) {
			*field = f[i]
		}
	}
	return m, true
}

// bears checks the name that a device file bears.
func (c *Config) bears(name string) error {
	m, _ := readMark(c.Device)
	if m.name != "" && m.name != name {
		return fmt.Errorf("%s belongs to mirror %q, not %q: refuse to touch it; choose another --device (or, if that mirror is gone for good, setfattr -x %s %s)",
			c.Device, m.name, name, deviceAttribute, c.Device)
	}
	return nil
}

// unmark takes the mark away; createVolume only ever marks what bore none.
func (c *Config) unmark() { _ = unix.Removexattr(c.Device, deviceAttribute) }

func (c *Config) marked() bool {
	m, _ := readMark(c.Device)
	return m.name != ""
}

// belongTogether checks that the device is the one that the journal with this anchor was last used with, as it was then.
func (c *Config) belongTogether(a journal.Anchor) error {
	s := parseSidecar(a.Extra)
	m, known := readMark(c.Device)
	if !known || s.stamp == "" && s.pending == "" {
		return nil
	}
	if m.stamp == s.stamp || s.pending != "" && m.stamp == s.pending {
		return nil
	}
	own := mark{a.Name, markedUUID(a), s.stamp}
	sure := fmt.Sprintf("if you know that the two belong together, setfattr -n %s -v '%s' %s", deviceAttribute, own, c.Device)
	switch {
	case m.stamp == "":
		return fmt.Errorf("%s does not bear the mark that its journal %s gave it: it is a copy, or another file; nothing was changed: "+
			"give back the device that belongs to this journal, or move both away and let the mirror be resynced; %s", c.Device, c.journalPath(), sure)
	case m.mirror != "-" && own.mirror != "-" && m.mirror != own.mirror:
		return fmt.Errorf("%s belongs to another mirror %q (uuid %s), its journal %s to uuid %s; nothing was changed: give each its own",
			c.Device, m.name, m.mirror, c.journalPath(), own.mirror)
	}
	return fmt.Errorf("%s and %s do not belong together: one of them is an older copy, or of another host (the device bears stamp %s, the journal expects %s); "+
		"nothing was changed: give back the newer one, or move both away and let the mirror be resynced, or promote the other side; %s",
		c.Device, c.journalPath(), m.stamp, s.stamp, sure)
}

func markedUUID(a journal.Anchor) string {
	if a.Mirror == [16]byte{} {
		return "-"
	}
	return uuid.UUID(a.Mirror).String()
}

// stamp gives journal and device a new stamp; update goes into the last anchor. It lets the volume do so again at its end.
func (c *Config) stamp(v *Volume, update func(*journal.Anchor)) error {
	v.restamp = func(update func(*journal.Anchor)) error { return c.stamp(v, update) }
	write := func(change func(*sidecar), update func(*journal.Anchor)) error {
		return v.journalError(v.log.WriteAnchor(func(a *journal.Anchor) {
			withSidecar(a, change)
			if update != nil {
				update(a)
			}
		}))
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	next := hex.EncodeToString(random[:])
	if _, known := readMark(c.Device); !known {
		return write(func(s *sidecar) { s.stamp, s.pending = "", "" }, update)
	}
	if err := write(func(s *sidecar) { s.pending = next }, nil); err != nil {
		return err
	}
	a := v.log.Anchor()
	err := unix.Setxattr(c.Device, deviceAttribute, []byte(mark{a.Name, markedUUID(a), next}.String()), 0)
	switch {
	case noSpace(err): // of a full filesystem, which is no reason not to go on: the old one stays
		return write(func(s *sidecar) { s.pending = "" }, update)
	case err != nil:
		return fmt.Errorf("mark the device: %w", err)
	}
	if err := syncFile(c.Device); err != nil {
		return fmt.Errorf("mark the device: %w", err)
	}
	return write(func(s *sidecar) { s.stamp, s.pending = next, "" }, update)
}

// syncFile is fsync, which also covers attributes; fdatasync need not.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
