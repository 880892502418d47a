package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"mirror-agent/mirror"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// history is a Source that a test writes.
type history struct {
	mu     sync.Mutex // guards all below
	events []mirror.Event
	more   chan struct{}
}

func newHistory() *history { return &history{more: make(chan struct{})} }

func (h *history) Events(after uint64) ([]mirror.Event, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]mirror.Event(nil), h.events[min(after, uint64(len(h.events))):]...), h.more
}

func (h *history) add(kinds ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range kinds {
		n := uint64(len(h.events) + 1)
		h.events = append(h.events, mirror.Event{Sequence: n, Kind: k, Mirror: "vol0", Target: "10.1.0.9:7400", Text: "said " + strconv.FormatUint(n, 10)})
	}
	close(h.more)
	h.more = make(chan struct{})
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// running starts a runner; end ends it and returns its log.
func running(t *testing.T, h *history, grace time.Duration, hooks ...Hook) (r *Runner, log *safeBuffer, end func() string) {
	t.Helper()
	for i := range hooks {
		if err := hooks[i].Validate(); err != nil {
			t.Fatal(err)
		}
	}
	log = &safeBuffer{}
	r = New(h, hooks, "/run/x.sock", zerolog.New(log).Level(zerolog.DebugLevel))
	r.grace = grace
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	var once sync.Once
	end = func() string {
		once.Do(func() { cancel(); <-done })
		return log.String()
	}
	t.Cleanup(func() { end() })
	return r, log, end
}

func counted(t *testing.T, r *Runner, want ...Counts) {
	t.Helper()
	if got := r.Counts(); !slices.Equal(got, want) {
		t.Errorf("counts %+v, want %+v", got, want)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func shell(script string) []string { return []string{"/bin/sh", "-c", script} }

func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// Events come in order, one after another, those from before the runner too, as JSON and in the environment.
func TestRun_order(t *testing.T) {
	h, out := newHistory(), filepath.Join(t.TempDir(), "out")
	h.add("promoted", "mode", "fenced")
	r, _, end := running(t, h, time.Minute, Hook{On: []string{"role"}, Run: shell(`
		read -r line
		[ -e ` + out + `.busy ] && echo overlap >> ` + out + `
		: > ` + out + `.busy
		echo "$line" > ` + out + `.$MIRROR_EVENT
		echo "$MIRROR_EVENT/$MIRROR_NAME/$MIRROR_EVENT_TARGET/$MIRROR_AGENT_CONTROL" >> ` + out + `
		echo "$MIRROR_EVENT_TEXT"
		rm ` + out + `.busy`)})
	h.add("serving", "alarm-raised")
	log := end() // what is queued is done first
	const who = "/vol0/10.1.0.9:7400//run/x.sock"
	if got, want := strings.Join(lines(t, out), " "), "promoted"+who+" fenced"+who+" serving"+who; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	var e map[string]any
	b, err := os.ReadFile(out + ".fenced")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &e); err != nil || e["kind"] != "fenced" || e["sequence"] != 3.0 || e["missed"] != 0.0 || bytes.Count(b, []byte("\n")) != 1 {
		t.Errorf("%s, %v", b, err)
	}
	if !strings.Contains(log, "hook says: said 3") {
		t.Errorf("its output is not in the log: %s", log)
	}
	counted(t, r, Counts{Events: "role", Done: 3})
}

// A hook that hangs is killed with its children, and others do not wait for it.
func TestRun_timeout(t *testing.T) {
	h, dir := newHistory(), t.TempDir()
	pids, other := filepath.Join(dir, "pids"), filepath.Join(dir, "other")
	r, log, end := running(t, h, time.Minute,
		Hook{On: []string{"all"}, Timeout: 500 * time.Millisecond, Run: shell(`sleep 1000 & echo $! $$ >> ` + pids + `; wait`)},
		Hook{On: []string{"all"}, Timeout: time.Minute, Run: shell("echo $MIRROR_EVENT >> " + other)})
	h.add("promoted")
	until(t, "the other hook", func() bool { return len(lines(t, other)) == 1 })
	until(t, "the kill", func() bool { return strings.Contains(log.String(), "it took too long") })
	h.add("fenced")
	until(t, "the next one", func() bool { return strings.Count(log.String(), "it took too long") == 2 })
	end()
	counted(t, r, Counts{Events: "all", Killed: 2}, Counts{Events: "all", Done: 2})
	all := lines(t, pids)
	if len(all) != 4 {
		t.Fatalf("processes: %q", all)
	}
	for _, p := range all {
		pid, _ := strconv.Atoi(p)
		until(t, "the end of process "+p, func() bool { return ended(pid) })
	}
}

// ended: the process is gone, or nobody has asked for its status yet.
func ended(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(b), ") Z ")
}

// A queue that is full loses the oldest, and says how many.
func TestRun_missed(t *testing.T) {
	h, dir := newHistory(), t.TempDir()
	out, gate := filepath.Join(dir, "out"), filepath.Join(dir, "gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	r, log, end := running(t, h, time.Minute, Hook{On: []string{"mode"}, Timeout: time.Minute, Run: shell(`
		read -r line; echo "$line" >> ` + out + `; [ "$MIRROR_EVENT_TEXT" = "said 1" ] && read -r go < ` + gate + `; exit 0`)})
	h.add("mode")
	until(t, "the first one runs", func() bool { return len(lines(t, out)) > 0 })
	const extra = 3
	for range QueueLength + extra {
		h.add("mode", "alarm-raised") // which is not asked for and takes no place
	}
	until(t, "the loss is told", func() bool { return strings.Count(log.String(), "the hook is too slow") == extra })
	f, err := os.OpenFile(gate, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, "go")
	f.Close()
	end()
	counted(t, r, Counts{Events: "mode", Done: 1 + QueueLength, Missed: extra})
	var missed []int
	d := json.NewDecoder(bytes.NewReader(mustRead(t, out)))
	for d.More() {
		var e struct{ Missed int }
		if err := d.Decode(&e); err != nil {
			t.Fatal(err)
		}
		missed = append(missed, e.Missed)
	}
	if len(missed) != 1+QueueLength || missed[0] != 0 || missed[1] != extra || missed[2] != 0 {
		t.Errorf("%d runs, missed %v; want %d, the second of which has missed %d", len(missed), missed, 1+QueueLength, extra)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// lastWord is a Source whose last event comes, and whose agent ends, right after it was asked for the first time.
type lastWord struct {
	*history
	once sync.Once
	end  func()
}

func (l *lastWord) Events(after uint64) (list []mirror.Event, changed <-chan struct{}) {
	list, changed = l.history.Events(after)
	l.once.Do(func() { l.add("failed"); l.end() })
	return list, changed
}

// What was told right before the end is run, whatever the runner sees first: which of the two is chance, so there are many rounds.
func TestRun_last(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		out := filepath.Join(dir, strconv.Itoa(i))
		h := Hook{On: []string{"failed"}, Timeout: time.Minute, Run: shell("echo $MIRROR_EVENT > " + out)}
		ctx, cancel := context.WithCancel(t.Context())
		New(&lastWord{history: newHistory(), end: cancel}, []Hook{h}, "/run/x.sock", zerolog.Nop()).Run(ctx)
		if got := lines(t, out); len(got) != 1 {
			t.Fatalf("round %d: the last event was lost", i)
		}
	}
}

// What still runs some time after the agent's end is killed.
func TestRun_end(t *testing.T) {
	h, pids := newHistory(), filepath.Join(t.TempDir(), "pids")
	r, _, end := running(t, h, 50*time.Millisecond, Hook{On: []string{"all"}, Timeout: time.Hour, Run: shell(`echo $$ >> ` + pids + `; sleep 1000`)})
	h.add("promoted", "fenced")
	until(t, "it runs", func() bool { return len(lines(t, pids)) > 0 })
	log := end()
	if !strings.Contains(log, "the agent has ended") {
		t.Error(log)
	}
	counted(t, r, Counts{Events: "all"}) // it is nobody's fault
	for _, p := range lines(t, pids) {
		pid, _ := strconv.Atoi(p)
		until(t, "its end", func() bool { return ended(pid) })
	}
}

// Failures are told and change nothing; what a command prints is bounded; a process that it leaves behind holds up nobody.
func TestRun_troubles(t *testing.T) {
	h, dir := newHistory(), t.TempDir()
	pid := filepath.Join(dir, "pid")
	r, _, end := running(t, h, time.Minute,
		Hook{On: []string{"all"}, Run: []string{"/nonexistent/program"}},
		Hook{On: []string{"all"}, Run: shell("echo bad; exit 3")},
		Hook{On: []string{"all"}, Run: shell("i=0; while [ $i -lt 3000 ]; do echo 0123456789; i=$((i+1)); done")},
		Hook{On: []string{"all"}, Run: shell("setsid sleep 1000 & echo $! > " + pid)})
	h.add("promoted")
	log := end()
	for _, want := range []string{"no such file", "hook says: bad", "exit status 3", "… and more than the log takes"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has not %q", want)
		}
	}
	counted(t, r, Counts{Events: "all", Failed: 1}, Counts{Events: "all", Failed: 1}, Counts{Events: "all", Done: 1}, Counts{Events: "all", Done: 1})
	if len(log) > 40*maxOutputBytes {
		t.Errorf("%d bytes of log", len(log))
	}
	left, _ := strconv.Atoi(strings.TrimSpace(string(mustRead(t, pid))))
	_ = syscall.Kill(left, syscall.SIGKILL)
}
