package integration

import (
	"encoding/json"
	"strconv"
	"strings"
	"sync"

	"mirror-agent/mirror"
)

// Faults of the matrix in which a volume changes its role or its target.

// faultOldSource: the source is cut off and goes on alone, then dies; the target is promoted. The old source comes back: it is fenced
// and serves nobody, and nothing of what only it had reaches anybody. It is demoted and brought in sync.
func faultOldSource(c *cell) {
	c.target.args = append(c.target.args, "--target", c.sourceListens())
	c.begin()
	k := c.now()
	c.cut(c.targetCables(), bothWays)
	c.client.more(c.t, 200) // in receive and durable: when the target no longer counts
	c.source.kill()
	c.dead()
	c.promote(c.target)
	c.judgeServed(c.target, k, promised(c.mode))
	c.adopt(c.target) // from here on what only the source had is nobody's
	c.connect(c.target)
	c.client.more(c.t, 60)

	c.source.start()
	c.source.until(portLimit, "waits, or serves alone", func(s *status) bool { return s.Role == "primary" })
	c.mend(c.targetCables())
	c.says(c.source, "fenced", "other side")
	if conn, err := dialNBD(c.source.nbd, mirrorName); err == nil {
		conn.close()
		c.t.Error("the old source serves although it is fenced")
	}
	c.client.more(c.t, 60)
	c.source.stop()
	if d := c.demote("source"); d.Export == nil || !d.Fenced {
		c.t.Errorf("the demotion of the old source exported nothing, or was not of a fenced one: %+v", d)
	}
	old := c.asTarget("source", c.sourceListens())
	old.start()
	c.target.untilStreaming("target")
	c.finish(c.target, "target", old)
}

// sourceListens is where the source is reached once it is a target.
func (c *cell) sourceListens() string {
	var l []string
	for _, k := range c.targetCables() {
		l = append(l, k.nearIP+":"+strconv.Itoa(portNumber))
	}
	return strings.Join(l, ",")
}

// demote makes the volume of a host a target's.
func (c *cell) demote(name string, flags ...string) (d mirror.DemoteResult) {
	c.t.Helper()
	r := runAgent(c.t, append([]string{"demote", "--json", "--device", c.path(name, "img"), "--journal", c.path(name, "journal")}, flags...)...)
	if r.code != 0 {
		c.t.Fatalf("demote: %s", r.stderr)
	}
	if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
		c.t.Fatalf("demote --json: %v in %s", err, r.stdout)
	}
	return d
}

// asTarget prepares the agent of a host as a target.
func (c *cell) asTarget(name, listen string) *agent {
	c.t.Helper()
	was := map[string]*agent{"source": c.source, "backup": c.backup}[name]
	args := []string{"target", "--name", mirrorName, "--node", name, "--listen", listen}
	for i, arg := range was.args {
		switch arg {
		case "--device", "--journal", "--nbd", "--key", "--peer-key":
			args = append(args, arg, was.args[i+1])
		}
	}
	a := c.agent(name, args...)
	a.inside = was.inside
	return a
}

// faultDoublePromote: the source is lost, and two who do not hear of each other promote both the target and the hot backup by force (without,
// neither has the word of a majority), each twice.
// When the two meet, neither takes anything of the other, and both say why; the operator demotes one of them.
func faultDoublePromote(c *cell) {
	between := c.net.joinTargetAndBackup()
	backListens := between.farIP + ":" + strconv.Itoa(portNumber)
	c.target.args = append(c.target.args, "--target", backListens)
	c.backup.replaceArg("--listen", c.backup.valueOf("--listen")+","+backListens)
	between.silence(bothWays)
	c.begin()
	c.cut(c.targetCables(), bothWays)
	c.cut(c.net.toBack, bothWays)
	k := c.burn()
	for _, a := range []*agent{c.target, c.backup} {
		c.promoteTwice(a)
	}
	c.judgeServed(c.target, k, promised(c.mode))
	lost := c.lost
	c.judgeServed(c.backup, k, dueState)
	c.lost = lost

	// Both are written to.
	c.adopt(c.target)
	c.connect(c.target)
	c.client.more(c.t, 60)
	scribble := c.backup.dial(startLimit)
	p := make([]byte, ledgerBlock)
	copy(p, "only the backup has this")
	for b := range int64(64) {
		if err := scribble.write(cellBase+b*7*ledgerBlock, p, true); err != nil {
			c.t.Fatal(err)
		}
	}
	scribble.close()

	between.heal()
	c.target.until(portLimit, "meets the other primary", func(s *status) bool { return strings.Contains(s.Reason, "two primaries") })
	c.says(c.target, "degraded", "two primaries were promoted independently", "demote --force")
	if s := c.backup.mustStatus(); s.Role != "primary" {
		c.t.Errorf("the backup has become %s", s.brief())
	}
	c.client.more(c.t, 60)

	c.backup.stop()
	if d := c.demote("backup", "--force"); d.Export == nil {
		c.t.Errorf("the demotion of the backup exported nothing: %+v", d)
	}
	second := c.asTarget("backup", backListens)
	second.start()
	c.target.untilStreaming("target")
	c.finish(c.target, "target", second)
}

// promoteTwice orders the same promotion twice at once: one of them takes place, and the generation is raised once.
func (c *cell) promoteTwice(a *agent) {
	c.t.Helper()
	eventually(c.t, portLimit, "a dry run of the promotion is accepted", func() (bool, string) {
		r := a.command("promote", "--force", "--dry-run")
		return r.code == 0, r.stderr
	})
	before := a.mustStatus().Generation
	var results [2]result
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { results[i] = a.command("promote", "--force") })
	}
	wg.Wait()
	if results[0].code != 0 && results[1].code != 0 {
		c.t.Fatalf("%s: promoted twice at once, both refused: %+v", a.name, results)
	}
	major := func(g string) int {
		n, err := strconv.Atoi(strings.SplitN(g, ".", 2)[0])
		if err != nil {
			c.t.Fatalf("generation %q", g)
		}
		return n
	}
	s := a.mustStatus()
	if s.Role != "primary" || major(s.Generation) != major(before)+1 {
		c.t.Errorf("%s: promoted twice at once: %s, generation %s after %s; %+v", a.name, s.Role, s.Generation, before, results)
	}
	c.t.Logf("%s: promoted twice at once: %d %s / %d %s", a.name, results[0].code, results[0].stderr, results[1].code, results[1].stderr)
}

// joinTargetAndBackup lays a cable between the two.
func (n *topology) joinTargetAndBackup() *cable {
	n.t.Helper()
	k := &cable{t: n.t, near: n.tgt, nearIf: "x1", nearIP: "10.203.1.2", far: n.bak, farIf: "x1", farIP: "10.203.1.3"}
	tool(n.t, "ip", "link", "add", k.nearIf, "netns", string(k.near), "type", "veth", "peer", "name", k.farIf, "netns", string(k.far))
	for host, ip := range map[netHost]string{k.near: k.nearIP, k.far: k.farIP} {
		tool(n.t, "ip", "-n", string(host), "addr", "add", ip+"/24", "dev", "x1")
		host.link(n.t, "x1", "up")
	}
	return k
}

// faultBackupKilled: a cold backup that was in sync once gets the flow again and is killed while what changed is copied to it. It still has
// the state it had; the copy goes on where it was.
func faultBackupKilled(c *cell) {
	for _, a := range []*agent{c.source, c.target, c.backup} {
		a.replaceArg("--journal-size", "16MiB")
	}
	c.begin()
	c.source.mustCommand("switch", "backup")
	c.source.untilStreaming("backup")
	c.rest()
	c.source.untilLevel("backup")
	old := c.known()
	c.work()
	c.source.mustCommand("switch", "primary")
	c.source.untilStreaming("target")
	from := c.source.mustStatus().Log.Head
	c.source.until(portLimit, "the log no longer reaches back", func(s *status) bool { return s.Log.Head > from+24<<20 })
	c.source.until(portLimit, "is in sync", func(s *status) bool { return s.State == "in sync" })

	for _, k := range c.net.toBack {
		k.shape(bothWays, 10)
	}
	atSwitch := c.now()
	c.source.mustCommand("switch", "backup")
	c.says(c.source, "resync", "copied")
	c.backup.until(portLimit, "is being copied to", func(s *status) bool { return s.State == "resync" })
	c.backup.kill()
	// While no target counts, the one that was left has all that the mode promised until then.
	c.alarmed()
	c.client.more(c.t, 60)
	c.judgeBurnt(c.target, atSwitch, promised(c.mode), "--force")
	lost := c.lost
	c.judgeBurnt(c.backup, old, dueAcked, "--force")
	c.lost = lost
	for _, k := range c.net.toBack {
		k.shape(bothWays, 0)
	}
	c.backup.start()
	c.source.untilStreaming("backup")
	c.finish(c.source, "backup", c.backup)
}
