package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-agent/mirror"
	"mirror-agent/mirror/drill"
)

// database is SQLite on the source's filesystem, with a client that commits one row after another.
type database struct {
	t    testing.TB
	in   io.WriteCloser
	rows int
	out  *bufio.Scanner
}

// row is what row n holds beside its number; so that a prefix is told from anything else.
func row(n int) string { return strings.Repeat(fmt.Sprintf("row %d ", n*n), 1+n%97) }

func openDatabase(t testing.TB, file string) *database {
	t.Helper()
	cmd := exec.Command("sqlite3", "-bail", file)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	d := &database{t: t, in: in, out: bufio.NewScanner(out)}
	d.say("pragma synchronous=extra;") // a commit is not undone by a crash: the journal's removal is fsynced too
	d.say("create table rows(n integer primary key, text text);")
	return d
}

// say runs statements and waits until they are done.
func (d *database) say(sql string) {
	d.t.Helper()
	fmt.Fprintf(d.in, "%s\nselect 'done';\n", sql)
	if !d.out.Scan() || d.out.Text() != "done" {
		d.t.Fatalf("sqlite3 said %q (%v)", d.out.Text(), d.out.Err())
	}
}

// commit commits n more rows, each for itself.
func (d *database) commit(n int) {
	d.t.Helper()
	for range n {
		d.rows++
		d.say(fmt.Sprintf("insert into rows values(%d, '%s');", d.rows, row(d.rows)))
	}
}

// TestDrill_database: ten drills on a target, at points in the middle of a database's work on ext4: the filesystem mounts, the database
// opens, its own check finds nothing, and what it holds is a prefix of what was committed, as long as the point says.
func TestDrill_database(t *testing.T) {
	needRoot(t, "loop devices and mounts")
	needTools(t, "nbdfuse", "losetup", "mkfs.ext4", "fusermount3", "sqlite3")
	m := newMirror(t, layout{size: 96 << 20, journal: "256MiB", targetArgs: []string{"--retain-time", "1h"}})
	t.Setenv("TMPDIR", m.dir) // of what runs drills
	m.start()
	dev, _ := loopDevice(t, m.source.nbd)
	tool(t, "mkfs.ext4", "-q", "-F", dev)
	dir := emptyDir(t)
	mountAt(t, dev, dir)
	db := openDatabase(t, filepath.Join(dir, "app.db"))

	type point struct {
		word        string
		least, most int // rows
	}
	var points []point
	r := newRand(t)
	var last uint64
	for i := range 5 {
		db.commit(20)
		name := fmt.Sprintf("cp%d", i)
		m.source.mustCommand("checkpoint", "create", name)
		points = append(points, point{"checkpoint:" + name, db.rows, db.rows})
		from := m.source.mustStatus().Log.Head
		least := db.rows
		db.commit(20)
		last = m.source.mustStatus().Log.Head
		points = append(points, point{"lsn:" + strconv.FormatUint(from+uint64(r.Int64N(int64(last-from))), 10), least, db.rows})
	}
	m.target.until(20*time.Second, "it has everything", func(s *status) bool { return s.Log.Head >= last })
	// It goes on while the drills run.
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				db.commit(1)
			}
		}
	}()
	for _, p := range points {
		config := m.drillConfig(t, p.word, emptyDir(t),
			"sqlite3 $MIRROR_AGENT_DRILL_MOUNT/app.db 'pragma integrity_check' | grep -qx ok",
			"sqlite3 $MIRROR_AGENT_DRILL_MOUNT/app.db 'select n, text from rows order by n'")
		res := m.target.drillRun(m, config)
		var rep drill.Report
		if err := json.Unmarshal([]byte(res.stdout), &rep); err != nil || res.code != 0 || rep.Result != drill.Passed {
			t.Fatalf("%s: %s%s", p.word, res.stdout, res.stderr)
		}
		rows := checkedRows(t, &rep)
		if rows < p.least || rows > p.most {
			t.Errorf("%s shows %d rows, %d to %d were committed by then", p.word, rows, p.least, p.most)
		}
	}
	close(stop)
	<-stopped
	nothingOfADrill(t, m)
}

// checkedRows makes sure that what the last check printed are rows 1 to n as they were committed, and returns n. Of a long output a
// report keeps the end.
func checkedRows(t testing.TB, rep *drill.Report) int {
	t.Helper()
	n := 0
	for _, s := range rep.Steps {
		if !s.Check || !strings.HasPrefix(s.Name, "check 2") {
			continue
		}
		lines := strings.Split(s.Output, "\n")
		if strings.HasPrefix(lines[0], "…") {
			lines = lines[1:]
		}
		for i, l := range lines {
			number, text, _ := strings.Cut(l, "|")
			k, err := strconv.Atoi(number)
			if err != nil || text != row(k) || i > 0 && k != n+1 {
				t.Fatalf("after row %d: %.200q (%v)", n, l, err)
			}
			n = k
		}
	}
	if n == 0 {
		t.Fatalf("no rows in %+v", rep.Steps)
	}
	return n
}

func emptyDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(shortDir(t), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// drillConfig writes a drill's file: fsck, a mount, and the checks.
func (m *testMirror) drillConfig(t testing.TB, at, mount string, checks ...string) string {
	t.Helper()
	reports := shortDir(t)
	text := fmt.Sprintf("label: it\nat: %q\nmount: %s\nreport: %s\nchecks:\n- {name: fsck, before-mount: true, run: 'e2fsck -fy $MIRROR_AGENT_DRILL_DEVICE; test $? -le 1'}\n", at, mount, reports)
	for i, c := range checks {
		text += fmt.Sprintf("- {name: check %d, run: %q}\n", i+1, c)
	}
	path := filepath.Join(reports, "drill.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (a *agent) drillRun(m *testMirror, config string) result {
	a.t.Helper()
	return runAgentWithin(a.t, time.Minute, "drill", "run", "--config", config, "--key", m.path(a.name, "key"), "--control", a.control, "--json")
}

// nothingOfADrill waits until nothing of any drill is left on this machine, and the mirror is in sync.
func nothingOfADrill(t testing.TB, m *testMirror) {
	t.Helper()
	eventually(t, 30*time.Second, "nothing of a drill is left", func() (bool, string) {
		var st mirror.DrillStatus
		if err := json.Unmarshal([]byte(m.target.mustCommand("drill", "status", "--json")), &st); err != nil || st.Running {
			return false, fmt.Sprintf("the drill runs: %+v %v", st, err)
		}
		left, _ := filepath.Glob(filepath.Join(m.dir, "*.drill*"))
		more, _ := filepath.Glob(filepath.Join(m.dir, "mirror-agent-drill-*"))
		if left = append(left, more...); len(left) > 0 {
			return false, fmt.Sprint(left)
		}
		loops, err := tryTool(toolTimeout, "losetup", "-n", "-O", "BACK-FILE")
		return err == nil && !strings.Contains(loops, m.dir+"/mirror-agent-drill-"), loops
	})
	m.source.untilStreaming("target")
}

// TestDrill_killed: `drill run` is killed after each of its steps; view, mount, devices and scratch are gone, and the
// mirror goes on. Then the target's agent is killed in a drill: it starts again and the mirror is in sync; both devices are equal.
func TestDrill_killed(t *testing.T) {
	needRoot(t, "loop devices and mounts")
	needTools(t, "nbdfuse", "losetup", "mkfs.ext4", "fusermount3")
	m := newMirror(t, layout{size: 32 << 20, journal: "128MiB"})
	t.Setenv("TMPDIR", m.dir) // of what runs drills
	m.start()
	dev, detach := loopDevice(t, m.source.nbd)
	tool(t, "mkfs.ext4", "-q", "-F", dev)
	detach()
	m.source.untilLevel("target")
	c := m.source.dial(startLimit)
	l := newLedger(baseSeed, m.size)
	const steps = 5 // view, device, fsck, mount, check; then a second check never ends
	for step := 1; step <= steps; step++ {
		mount := emptyDir(t)
		config := m.drillConfig(t, "", mount, "touch $MIRROR_AGENT_DRILL_MOUNT/there", "sleep 1000")
		cmd := exec.Command(program(t), "drill", "run", "--config", config, "--key", m.path("target", "key"), "--control", m.target.control)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var errs strings.Builder
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for i := range step {
			if !lines.Scan() {
				t.Fatalf("step %d: it ended after %d: %s", step, i, &errs)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		eventually(t, 30*time.Second, "the mount is gone", func() (bool, string) {
			b, err := os.ReadFile("/proc/mounts")
			return err == nil && !strings.Contains(string(b), mount), "mounted"
		})
		nothingOfADrill(t, m)
	}

	// Now the agent, while the view is written to and the mirror is, too.
	m.target.mustCommand("drill", "start", "--nbd", "unix:"+m.path("target", "dr"))
	view, err := dialNBD("unix:"+m.path("target", "dr"), mirrorName)
	if err != nil {
		t.Fatal(err)
	}
	var writing sync.WaitGroup
	writing.Go(func() {
		p := make([]byte, 64<<10)
		for i := range p {
			p[i] = byte(i)
		}
		for off := int64(0); view.write(off%(m.size-1<<20), p, false) == nil; off += 64 << 10 {
		}
	})
	ld := l.startLoad(c, newRand(t), 8, 20)
	ld.untilAnswered(t, 300)
	m.target.kill()
	writing.Wait()
	view.close()
	m.target.start()
	m.target.untilUp()
	ld.untilAnswered(t, 600)
	nothingOfADrill(t, m)
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.source.untilLevel("target")
	m.stopLevel("target")
}
