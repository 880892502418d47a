package integration

// What the processes and the network of a mirror can meet, one function for each fault of the matrix.

// faultPath: one of two paths falls silent. Nobody notices; the target is as good as before.
func faultPath(c *cell) {
	c.begin()
	c.net.toTarget[0].silence(bothWays)
	c.source.until(portLimit, "one path is left", func(s *status) bool { return activePaths(s) == 1 })
	c.client.more(c.t, 100)
	c.says(c.source, "in sync")
	c.judgeBurnt(c.target, c.now(), promised(c.mode))
	c.net.toTarget[0].heal()
	c.source.until(portLimit, "both paths are back", func(s *status) bool { return activePaths(s) == 2 })
	c.noResync(c.source)
	c.finish(c.source, "target", c.target)
}

// faultTargetKilled: what the killed target had is promotable; the source goes on alone, says so, and it catches up.
func faultTargetKilled(c *cell) {
	c.begin()
	k := c.now()
	c.target.kill()
	c.alarmed()
	c.client.more(c.t, 100)
	c.judgeBurnt(c.target, k, promised(c.mode))
	c.target.start()
	c.source.untilStreaming("target")
	c.finish(c.source, "target", c.target)
}

// faultSourceKilled: the source is killed; it comes back with all that it had answered, and what burnt with it for good is what
// the mode says.
func faultSourceKilled(c *cell) {
	c.begin()
	c.cut(c.targetCables(), bothWays) // what is under way dies with the host
	k := c.burn()
	c.judgeBurnt(c.target, k, promised(c.mode))
	c.mend(c.targetCables())
	c.restartSource(k)
	c.finish(c.source, "target", c.target)
}

// burn kills the source; what had been answered until then is returned.
func (c *cell) burn() known {
	c.t.Helper()
	c.source.kill()
	c.rest()
	k := c.now()
	c.dead()
	return k
}

// restartSource brings the source back: everything that was answered is there (G1), and nothing has to be copied (G3).
func (c *cell) restartSource(k known) {
	c.t.Helper()
	c.source.start()
	lost := c.lost
	c.judgeServed(c.source, k, dueAcked)
	c.lost = lost
	c.adopt(c.source)
	c.source.untilStreaming("target")
	c.noResync(c.source)
	c.connect(c.source)
}

// faultBothKilled: both are killed at nearly the same time. What the target has alone is what the mode says; together they lose
// nothing and meet by their logs.
func faultBothKilled(c *cell) {
	c.begin()
	c.target.kill()
	k := c.burn()
	c.judgeBurnt(c.target, k, promised(c.mode))
	c.target.start()
	c.restartSource(k)
	c.finish(c.source, "target", c.target)
}

// faultPartition: no word gets through. The source goes on alone and says so, the target names the way out; then they meet by their logs.
func faultPartition(c *cell) {
	c.begin()
	c.apart(bothWays)
	c.finish(c.source, "target", c.target)
}

// faultOneWay: the same when only what the source says is lost, and when only what the target says is.
func faultOneWay(c *cell) {
	c.begin()
	c.apart(forth)
	c.apart(back)
	c.finish(c.source, "target", c.target)
}

// apart plays one partition.
func (c *cell) apart(d direction) {
	c.t.Helper()
	k := c.now()
	c.cut(c.targetCables(), d)
	c.alarmed()
	c.says(c.target, "waiting", "promote")
	c.client.more(c.t, 100)
	c.judgeBurnt(c.target, k, promised(c.mode))
	c.mend(c.targetCables())
	c.source.untilStreaming("target")
	c.noResync(c.source)
}
