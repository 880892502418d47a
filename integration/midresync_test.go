package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"mirror-agent/mirror"
)

// TestPromotedInResync: the target is away for longer than the log reaches back, so it gets what changed by a bitmap, built beside the
// state that it had (G4). In the middle of that it is promoted by force, and serves that state, of one moment before it was cut off,
// with nothing of the copy. The source is fenced, gives up what only it has, and follows: the mirror is whole again.
func TestPromotedInResync(t *testing.T) {
	needRoot(t, "network namespaces")
	c := newCell(t, "flush", netLayout{sourceArgs: []string{"--resync-rate", "1MiB"}}) // so that there is a middle
	for _, a := range []*agent{c.source, c.target} {
		a.replaceArg("--journal-size", "16MiB")
	}
	c.begin()
	k := c.now()
	head := c.source.mustStatus().Log.Head
	c.cut(c.targetCables(), bothWays)
	c.alarmed()
	c.client.more(t, 200)
	alone := c.known()
	const dirty = 8 << 20
	c.source.until(workLimit, "the log no longer reaches back", func(s *status) bool {
		return s.Log.Tail > head && s.follower("target").DirtyBytes > dirty
	})
	c.rest()

	before := c.target.lastEvent()
	c.mend(c.targetCables())
	c.says(c.source, "resync", "copied")
	staged := c.target.valueOf("--journal") + ".staging"
	eventually(t, portLimit, "a part of the copy is there", func() (bool, string) {
		n := allocated(t, staged)
		return n >= dirty/4, fmt.Sprintf("%d bytes at %s", n, staged)
	})
	if r := c.target.command("promote"); r.code != 1 || !strings.Contains(r.stderr, "--force") {
		t.Errorf("promoted although its source lives: %+v", r)
	}
	c.target.mustCommand("promote", "--force")
	if l := c.target.eventsAfter(before); slices.ContainsFunc(l, func(e agentEvent) bool { return e.Kind == "resynced" }) {
		t.Fatalf("it was promoted after the resync, which shows nothing: %+v", l)
	}
	if why := strings.Join(c.source.resyncs(), "; "); !strings.Contains(why, "what changed since is copied") {
		t.Errorf("it was resynced, but not by a bitmap: %s", why)
	}
	c.says(c.source, "fenced", "other side")
	c.dead()

	c.judgeServed(c.target, k, promised(c.mode))
	c.judgeLacks(c.target, alone)

	c.adopt(c.target)
	c.connect(c.target)
	c.client.more(t, 60)
	var d mirror.DemoteResult
	if err := json.Unmarshal([]byte(c.source.mustCommand("demote", "--json")), &d); err != nil || !d.Fenced || d.Export == nil || d.Export.Records == 0 {
		t.Errorf("the old source gave up %+v (%v)", d, err)
	}
	if d.Complete || d.Exact { // its log begins behind the place where they parted
		t.Errorf("the old source says that it exported all that only it had: %+v", d)
	}
	if x := c.target.untilFollowed().Resynced; x == nil || !x.All {
		t.Errorf("where they parted is not in its log any more, and yet the old source was not compared as a whole: %+v", x)
	}
	c.finish(c.target, "target", c.source)
}

// judgeLacks: an agent serves a state of one moment, and not all of what was known is in it.
func (c *cell) judgeLacks(a *agent, k known) {
	c.t.Helper()
	conn := a.dial(startLimit)
	defer conn.close()
	short, err := c.ledger.measure(func(off int64, p []byte) error { return conn.read(off+c.base, p) }, k.writes)
	if err != nil || short.acked == 0 {
		c.t.Errorf("%s serves what it cannot have: it lacks %d of the writes that nobody had sent it; %v", a.name, short.acked, err)
	}
}

// allocated is how much of a file has a place on the disk; 0 when there is no such file.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}
