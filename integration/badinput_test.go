package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// checkOneLine: among what a process printed on stderr (its log may come
// before) exactly one line is the verdict, it is the last one, and it names
// what a person needs.
func checkOneLine(t testing.TB, stderr string, words ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	last := lines[len(lines)-1]
	n := 0
	for _, l := range lines {
		if strings.HasPrefix(l, "mirror-agent: ") {
			n++
		}
	}
	if n != 1 || !strings.HasPrefix(last, "mirror-agent: ") {
		t.Errorf("stderr should end with its one line \"mirror-agent: …\":\n%s", stderr)
		return
	}
	if strings.Contains(stderr, "goroutine ") {
		t.Errorf("a stack trace:\n%s", stderr)
	}
	for _, w := range words {
		if !strings.Contains(last, w) {
			t.Errorf("the line does not say %q: %s", w, last)
		}
	}
}

// badCase is a start that has to be refused.
type badCase struct {
	name string
	// prepare makes the situation in dir and returns the command line.
	prepare func(t *testing.T, dir string) []string
	codes   []int    // allowed exit statuses; default 1
	words   []string // that the line has to say; DIR stands for the directory
}

func TestBadInput(t *testing.T) {
	source := func(dir string, more ...string) []string {
		return append([]string{
			"source", "--name", mirrorName, "--device", filepath.Join(dir, "d.img"), "--nbd", "unix:" + filepath.Join(dir, "n"), "--insecure",
		}, more...)
	}
	config := func(text string) func(t *testing.T, dir string) []string {
		return func(t *testing.T, dir string) []string {
			writeFile(t, filepath.Join(dir, "c.yaml"), strings.ReplaceAll(text, "DIR", dir))
			return []string{"run", "--config", filepath.Join(dir, "c.yaml")}
		}
	}
	used := func(t *testing.T) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l.Addr().String()
	}
	usedAddr := ""
	cases := []badCase{
		{"unknown key", config("role: source\nname: v\ndevice: DIR/d.img\nsize: 16MiB\nnbd: unix:DIR/n\ntargts: 127.0.0.1:1\n"), nil, []string{"DIR/c.yaml:6", `"targts"`, `did you mean "target"`}},
		{"value of the wrong kind", config("role: source\nname: v\ndevice: DIR/d.img\nsize: many\nnbd: unix:DIR/n\n"), nil, []string{"DIR/c.yaml:4", "size", "many"}},
		{"not YAML", config("role: source\n\tname: [v\n"), nil, []string{"DIR/c.yaml", "2"}},
		{"no role", config("name: v\n"), nil, []string{"role"}},
		{"no such config", func(_ *testing.T, dir string) []string {
			return []string{"run", "--config", filepath.Join(dir, "none.yaml")}
		}, nil, []string{"DIR/none.yaml"}},
		{"bad name", func(_ *testing.T, dir string) []string {
			return append(source(dir, "--size", "16MiB"), "--name", "a/b")
		}, []int{1, 2}, []string{"a/b"}},
		{"bad size", func(_ *testing.T, dir string) []string { return source(dir, "--size", "16MB?") }, []int{1, 2}, []string{"16MB?"}},
		{"odd size", func(_ *testing.T, dir string) []string { return source(dir, "--size", "1000001") }, []int{1, 2}, []string{"1000001", "512"}},
		{"no device and no size", func(_ *testing.T, dir string) []string { return source(dir) }, nil, []string{"DIR/d.img", "--size"}},
		{"device is a directory", func(t *testing.T, dir string) []string {
			if err := os.Mkdir(filepath.Join(dir, "d.img"), 0o700); err != nil {
				t.Fatal(err)
			}
			return source(dir, "--size", "16MiB")
		}, nil, []string{"DIR/d.img"}},
		{"size that does not fit", func(t *testing.T, dir string) []string {
			writeFile(t, filepath.Join(dir, "d.img"), strings.Repeat("precious", 1<<20))
			return source(dir, "--size", "16MiB")
		}, nil, []string{"DIR/d.img", "size"}},
		{"a target on data of somebody's", func(t *testing.T, dir string) []string {
			writeFile(t, filepath.Join(dir, "d.img"), strings.Repeat("precious", 2<<20))
			return []string{"target", "--name", mirrorName, "--device", filepath.Join(dir, "d.img"), "--listen", "127.0.0.1:0", "--insecure"}
		}, nil, []string{"DIR/d.img", "--adopt"}},
		{"journal too small", func(_ *testing.T, dir string) []string {
			return source(dir, "--size", "16MiB", "--journal-size", "1MiB")
		}, []int{1, 2}, []string{"journal", "16"}},
		{"journal is something else", func(t *testing.T, dir string) []string {
			writeFile(t, filepath.Join(dir, "d.img.journal"), strings.Repeat("no journal at all ", 4<<20))
			return source(dir, "--size", "16MiB")
		}, nil, []string{"DIR/d.img.journal"}},
		{"listen address in use", func(t *testing.T, dir string) []string {
			usedAddr = used(t)
			return []string{
				"target", "--name", mirrorName, "--device", filepath.Join(dir, "d.img"), "--size", "16MiB", "--insecure",
				"--listen", usedAddr,
			}
		}, nil, []string{"USED", "in use"}},
		{"NBD address in use", func(t *testing.T, dir string) []string {
			usedAddr = used(t)
			return append(source(dir, "--size", "16MiB"), "--nbd", usedAddr)
		}, nil, []string{"USED", "in use"}},
		{"peer key that is none", func(t *testing.T, dir string) []string {
			makeKey(t, filepath.Join(dir, "k"))
			return []string{
				"target", "--name", mirrorName, "--device", filepath.Join(dir, "d.img"), "--size", "16MiB", "--listen", "127.0.0.1:0",
				"--key", filepath.Join(dir, "k"), "--peer-key", "ed25519:xyz",
			}
		}, []int{1, 2}, []string{"ed25519:xyz"}},
		{"no key", func(_ *testing.T, dir string) []string {
			return []string{
				"target", "--name", mirrorName, "--device", filepath.Join(dir, "d.img"), "--size", "16MiB", "--listen", "127.0.0.1:0",
				"--key", filepath.Join(dir, "nokey"),
			}
		}, nil, []string{"DIR/nokey", "keygen"}},
		{"plain TCP off loopback", func(_ *testing.T, dir string) []string {
			return []string{
				"target", "--name", mirrorName, "--device", filepath.Join(dir, "d.img"), "--size", "16MiB", "--listen", "0.0.0.0:0",
			}
		}, nil, []string{"key"}},
	}
	for _, c := range append(cases, badTLS(source)...) {
		t.Run(c.name, func(t *testing.T) {
			dir := shortDir(t)
			args := c.prepare(t, dir)
			refused(t, dir, args, c.codes, fill(c.words, "DIR", dir, "USED", usedAddr)...)
		})
	}
}

func fill(words []string, pairs ...string) (filled []string) {
	r := strings.NewReplacer(pairs...)
	for _, w := range words {
		filled = append(filled, r.Replace(w))
	}
	return filled
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// refused runs a command line that has to be refused with one line, and without
// touching any file that was there.
func refused(t *testing.T, dir string, args []string, codes []int, words ...string) {
	t.Helper()
	if codes == nil {
		codes = []int{1}
	}
	before := hashes(t, dir)
	r := runAgentWithin(t, 20*time.Second, append(args, "--control", filepath.Join(dir, "ctl"))...)
	if !slices.Contains(codes, r.code) {
		t.Errorf("exit status %d, want one of %v", r.code, codes)
	}
	checkOneLine(t, r.stderr, words...)
	after := hashes(t, dir)
	for path, h := range before {
		if after[path] != h {
			t.Errorf("%s was changed by a start that was refused: %s before, %s after", filepath.Base(path), h, after[path])
		}
	}
	t.Logf("%s", strings.TrimSpace(tailLine(r.stderr)))
}

func tailLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func hashes(t testing.TB, dir string) map[string]string {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := map[string]string{}
	for _, f := range files {
		if f.Type().IsRegular() {
			h[filepath.Join(dir, f.Name())] = fileHash(t, filepath.Join(dir, f.Name()))
		}
	}
	return h
}

// TestBadDisk: a mirror that has lived, and then somebody did something to its
// files. Each is refused by name, and not one byte is changed.
func TestBadDisk(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, m *testMirror)
		args  []string // in place of or after the source's
		words []string
	}{
		{"belongs to another mirror", nil, []string{"--name", "other"}, []string{"source.img", `"vol0"`, `"other"`}},
		{"device cut short", func(t *testing.T, m *testMirror) { truncate(t, m.source.device, m.size/2) }, nil, []string{"source.img"}},
		{"device gone", func(t *testing.T, m *testMirror) { os.Remove(m.source.device) }, nil, []string{"source.img"}},
		{"journal cut short", func(t *testing.T, m *testMirror) { truncate(t, m.path("source", "journal"), 32<<20) }, nil, []string{"source.journal"}},
		{"journal nearly nothing", func(t *testing.T, m *testMirror) { truncate(t, m.path("source", "journal"), 100) }, nil, []string{"source.journal"}},
		{"both anchors damaged", func(t *testing.T, m *testMirror) {
			flip(t, m.path("source", "journal"), 100, 4096+100)
		}, nil, []string{"source.journal"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMirror(t, aloneLayout)
			m.source.start()
			conn := m.source.dial(startLimit)
			l := newLedger(1, m.size)
			ld := l.startLoad(conn, newRand(t), 2, 10)
			ld.untilAnswered(t, 50)
			if err := ld.stop(); err != nil {
				t.Fatal(err)
			}
			conn.close()
			m.source.stop()
			if c.spoil != nil {
				c.spoil(t, m)
			}
			refused(t, m.dir, append(slices.Clone(m.source.args), c.args...), nil, c.words...)
		})
	}
}

// aloneLayout is for a source whose target is never started: it does not wait
// long for it.
var aloneLayout = layout{insecure: true, sourceArgs: []string{"--start-wait", "200ms"}}

// TestBitRot flips one bit in a part of the log that a later record promises to
// be durable and that is not applied yet. The source refuses to start, names
// the LSN and changes nothing; with the bit mended it goes on. A flip that hits
// something else is not refused: what is applied already is not read again, and
// behind the last promise in a record or anchor it cannot be told from a torn
// tail. The log is cut there, and the device is in a state that it had (G7).
func TestBitRot(t *testing.T) {
	m := newMirror(t, aloneLayout)
	l, r := newLedger(1, m.size), newRand(t)
	journal := m.path("source", "journal")
	m.source.start()
	conn := m.source.dial(startLimit)
	for attempt := range 20 {
		ld := l.startLoad(conn, r, 16, 4)
		ld.untilAnswered(t, int64(200+r.IntN(300)))
		m.source.kill()
		if err := ld.join(); err != nil {
			t.Fatal(err)
		}
		undo := flip(t, journal, lastByte(t, journal)-int64(50<<10+r.IntN(300<<10)))
		code, stderr := tryStart(t, m)
		if code == 1 {
			t.Logf("attempt %d: %s", attempt, tailLine(stderr))
			checkOneLine(t, stderr, "source.journal", "LSN")
			refused(t, m.dir, m.source.args, nil, "source.journal", "LSN")
			undo()
			m.source.start()
			conn = m.source.dial(startLimit)
			if err := l.verify(conn.read, allAcked); err != nil {
				t.Fatal(err)
			}
			conn.close()
			return
		}
		m.source.start()
		conn = m.source.dial(startLimit)
		if err := l.verify(conn.read, allSettled); err != nil {
			t.Fatalf("served with a flipped bit: %v", err)
		}
		if err := l.settle(conn.read); err != nil {
			t.Fatal(err)
		}
	}
	t.Error("no flip hit a record that was durable and not applied: this test tested nothing")
}

// tryStart starts the source and says how it ended; 0: it serves, and was then
// killed.
func tryStart(t *testing.T, m *testMirror) (code int, stderr string) {
	t.Helper()
	from := len(tail(m.source.log, 1<<30))
	m.source.start()
	eventually(t, startLimit, "the source serves or ends", func() (bool, string) {
		if m.source.hasEnded() {
			code = 1
			return true, ""
		}
		c, err := dialNBD(m.source.nbd, mirrorName)
		if err == nil {
			c.close()
		}
		return err == nil, "neither"
	})
	m.source.kill()
	_, stderr, _ = strings.Cut(tail(m.source.log, 1<<30)[from:], "\n")
	return code, stderr
}

func truncate(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// flip inverts a bit at each offset; undo inverts it again.
func flip(t testing.TB, path string, offsets ...int64) (undo func()) {
	t.Helper()
	do := func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := []byte{0}
		for _, off := range offsets {
			if _, err := f.ReadAt(b, off); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 0x10
			if _, err := f.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
		}
	}
	do()
	return do
}

// lastByte is the offset of the last byte of a file that is not zero.
func lastByte(t testing.TB, path string) int64 {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(bytes.TrimRight(b, "\x00"))) - 1
}

// TestWrongPeerKey: a peer that presents another key than the expected one gets
// nothing, and both sides say so.
func TestWrongPeerKey(t *testing.T) {
	m := newMirror(t, layout{})
	stranger := makeKey(t, m.path("stranger", "key"))
	for i, a := range m.source.args {
		if a == "--peer-key" {
			m.source.args[i+1] = stranger
		}
	}
	m.target.start()
	blank := m.target.untilUp().Log.Head
	m.source.start()
	c := m.source.dial(startLimit)
	if err := c.write(0, make([]byte, 4096), false); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.source.until(15*time.Second, "says that the key is wrong", func(s *status) bool {
		f := s.follower("target")
		return f.State != streaming && strings.Contains(fmt.Sprintf("%s %+v", s.Reason, s.Alarms), "key") ||
			strings.Contains(m.source.command("events", "--json").stdout, "key")
	})
	if s := m.target.mustStatus(); s.Log.Head != blank {
		t.Errorf("the target took something from a stranger: %s", s.brief())
	}
	m.source.stop()
	m.target.stop()
}
