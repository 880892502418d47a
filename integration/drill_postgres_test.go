package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mirror-agent/mirror/drill"
)

const pgClients = 3

// TestDrill_postgres: PostgreSQL on ext4 on the mirrored device, three clients that commit all the time. In drills at points in the middle of
// it (an LSN, a checkpoint, a time) the filesystem mounts, the server recovers, pg_amcheck and the checksums of all pages find
// nothing, and what is there is a prefix of what was committed, everything that had been answered before the point among it. What the
// drills cost replication is printed, beside what the same checks cost it when they run on a copy of the disk that has nothing to do with
// the mirror: here they share the processors with source and target. MIRROR_AGENT_ROUNDS: up to ten drills.
func TestDrill_postgres(t *testing.T) {
	needRoot(t, "loop devices and mounts")
	needTools(t, "nbdkit", "nbdcopy", "nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "fusermount3", "setpriv")
	m := newMirror(t, layout{size: 192 << 20, journal: "256MiB", targetArgs: []string{"--retain-time", "1h"}})
	t.Setenv("TMPDIR", m.dir) // of what runs drills
	m.start()
	dev, detach := loopDevice(t, m.source.nbd)
	tool(t, "mkfs.ext4", "-q", "-F", dev)
	mount := emptyDir(t)
	unmount := mountAt(t, dev, mount)
	p := newPostgres(t, mount)
	stopServer := p.start()
	p.query("create table rows(client int, n int, text text, primary key(client, n)); create table sums(client int primary key, n int);" +
		fmt.Sprintf("insert into sums select c, 0 from generate_series(1, %d) c", pgClients))
	stopClients := p.work(pgClients)
	lag := watchLag(t, m.source)

	r := newRand(t)
	for i := range min(rounds(t, 3), 10) {
		lag.phase.Store("without a drill")
		p.untilCommitted(500)
		least, from := p.committed(), m.source.mustStatus().Log.Head
		began := time.Now()
		p.untilCommitted(1 + r.IntN(60))
		var at string
		switch i % 3 {
		case 0:
			at = "lsn:" + strconv.FormatUint(from+uint64(r.Int64N(int64(m.source.mustStatus().Log.Head-from))), 10)
		case 1:
			at = fmt.Sprintf("checkpoint:cp%d", i)
			least = p.committed()
			m.source.mustCommand("checkpoint", "create", at[len("checkpoint:"):])
		case 2:
			at = began.Add(time.Duration(r.Int64N(int64(time.Since(began))))).UTC().Format(time.RFC3339Nano)
		}
		most, _ := p.moment()
		last := m.source.mustStatus().Log.Head
		m.target.until(20*time.Second, "it has the point", func(s *status) bool { return s.Log.Committed >= last })
		lag.phase.Store("in a drill")
		p.drill(m, at, least, most)
		lag.phase.Store("between")
		if i == 0 {
			p.copyView(m)
		}
		p.beside(func(phase string) { lag.phase.Store(phase) })
	}
	lag.stop()
	stopClients()
	lag.print()
	nothingOfADrill(t, m)
	p.leave(m)
	stopServer()
	unmount()
	detach()
	m.stopLevel("target")
}

// committed is how many rows of each client are answered.
func (p *postgres) committed() map[int]int { _, answered := p.moment(); return answered }

// work lets clients commit until the returned function is called.
func (p *postgres) work(clients int) (stop func()) {
	p.t.Helper()
	var over atomic.Bool
	ended := make(chan error, clients)
	for id := 1; id <= clients; id++ {
		c := p.connect(id)
		go func() {
			for !over.Load() {
				if err := c.commit(); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	return func() {
		p.t.Helper()
		over.Store(true)
		for range clients {
			if err := <-ended; err != nil {
				p.t.Error(err)
			}
		}
	}
}

// untilCommitted waits for so many commits more.
func (p *postgres) untilCommitted(n int) {
	p.t.Helper()
	from := p.total()
	eventually(p.t, workLimit, fmt.Sprintf("%d more commits", n), func() (bool, string) {
		now := p.total()
		return now >= from+n, fmt.Sprintf("%d of %d", now-from, n)
	})
}

// drill runs one on the target at a point, and judges what it shows.
func (p *postgres) drill(m *testMirror, at string, least, most map[int]int) {
	t := p.t
	t.Helper()
	mount := emptyDir(t)
	openTo(t, filepath.Dir(mount))
	sockets := filepath.Join(p.run, "drill")
	res := m.target.drillRun(m, m.drillConfig(t, at, mount, p.checks()...))
	var rep drill.Report
	if err := json.Unmarshal([]byte(res.stdout), &rep); err != nil || res.code != 0 || rep.Result != drill.Passed {
		t.Fatalf("%s: %s%s\nits server said:\n%s", at, res.stdout, res.stderr, tail(filepath.Join(sockets, "log"), 4<<10))
	}
	rows, err1 := os.ReadFile(filepath.Join(p.run, "rows"))
	sums, err2 := os.ReadFile(filepath.Join(p.run, "sums"))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := p.judge(string(rows), string(sums), least, most); err != nil {
		t.Errorf("%s: %v", at, err)
	}
	t.Logf("drill at %s: %s; scratch %d KiB, %d bytes of rows", at, rep.Summary(), rep.ScratchBytes>>10, len(rows))
	if err := os.Remove(filepath.Join(sockets, "log")); err != nil {
		t.Error(err)
	}
}

// checks are what a drill runs.
func (p *postgres) checks() []string {
	sockets := filepath.Join(p.run, "drill")
	sql := func(query, into string) string {
		return fmt.Sprintf("%s/psql -XqAt -v ON_ERROR_STOP=1 -h %s -U postgres -c '%s' >%s", p.bin, sockets, query, filepath.Join(p.run, into))
	}
	return []string{
		p.startInDrill() + fmt.Sprintf(" && grep -F 'automatic recovery in progress' %s/log", sockets),
		fmt.Sprintf("%s/pg_amcheck -h %s -U postgres -d postgres --install-missing --heapallindexed --parent-check", p.bin, sockets),
		sql("select client, n, text from rows order by client, n", "rows") + " && " + sql("select client, n from sums", "sums"),
		fmt.Sprintf("%s %s/pg_ctl -D %s -w -m fast stop && %[1]s %[2]s/pg_checksums --check -D %[3]s", p.as, p.bin, dataInDrill),
	}
}

// copyView copies the device as a drill shows it.
func (p *postgres) copyView(m *testMirror) {
	p.t.Helper()
	m.target.mustCommand("drill", "start")
	tool(p.t, "nbdcopy", nbdURI(m.target.nbd+".drill"), p.copied())
	m.target.mustCommand("drill", "stop")
}

func (p *postgres) copied() string { return filepath.Join(p.run, "copy.img") }

// beside does all that a drill does on the copy, behind a server that throws away what is written, as a drill does.
func (p *postgres) beside(phase func(string)) {
	t := p.t
	t.Helper()
	socket := filepath.Join(shortDir(t), "s")
	mount := emptyDir(t)
	openTo(t, filepath.Dir(mount))
	phase("the same beside")
	server := background(t, "nbdkit", "-f", "-U", socket, "--filter=cow", "file", p.copied())
	eventually(t, startLimit, "nbdkit listens", func() (bool, string) {
		_, err := os.Stat(socket)
		return err == nil, ""
	})
	dev, detach := loopDevice(t, "unix:"+socket)
	if out, err := tryTool(toolTimeout, "sh", "-c", "e2fsck -fy "+dev+"; test $? -le 1"); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	unmount := mountAt(t, dev, mount)
	for _, c := range p.checks() {
		if out, err := tryTool(toolTimeout, "env", "MIRROR_AGENT_DRILL_MOUNT="+mount, "sh", "-c", c); err != nil {
			t.Fatalf("%s: %v\n%s", c, err, out)
		}
	}
	unmount()
	detach()
	phase("between")
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(p.run, "drill", "log")); err != nil {
		t.Error(err)
	}
}

const dataInDrill = "$MIRROR_AGENT_DRILL_MOUNT/pg"

// startInDrill starts the server on the view, and leaves it running. The source's server runs, so its lock file is there: on another
// host its process number means nothing.
func (p *postgres) startInDrill() string {
	return fmt.Sprintf("rm %s/postmaster.pid; %s %s/pg_ctl -D %[1]s -w -t 60 -o '-k %[4]s' -l %[4]s/log start", dataInDrill, p.as, p.bin, filepath.Join(p.run, "drill"))
}

// leave runs drills that leave daemons on the view, with sessions of their own: a server, and one that nothing ends but SIGKILL. The next check
// of one drill fails, the other is killed. Both take everything back.
func (p *postgres) leave(m *testMirror) {
	t := p.t
	t.Helper()
	server := filepath.Join(p.run, "drill")
	start := p.startInDrill() + fmt.Sprintf(" && setsid -f sh -c 'trap : TERM; cd %s; while :; do sleep 1; done' %s/stubborn", dataInDrill, server)
	gone := func() {
		t.Helper()
		eventually(t, 30*time.Second, "the daemons on the view are gone", func() (bool, string) {
			out, err := tryTool(toolTimeout, "pgrep", "-af", "postgres .*-k "+server+"|"+server+"/stubborn")
			return err != nil, out
		})
		nothingOfADrill(t, m)
	}
	mount := emptyDir(t)
	openTo(t, filepath.Dir(mount))
	res := m.target.drillRun(m, m.drillConfig(t, "", mount, start, "exit 3"))
	var rep drill.Report
	if err := json.Unmarshal([]byte(res.stdout), &rep); err != nil || res.code != 1 || rep.Reason != "check 2: exit status 3" {
		t.Fatalf("a check that fails: status %d, %v: %s%s", res.code, err, res.stdout, res.stderr)
	}
	for _, s := range rep.Steps {
		if s.Error != "" && !s.Check {
			t.Errorf("%s: %s", s.Name, s.Error)
		}
	}
	gone()

	mount = emptyDir(t)
	openTo(t, filepath.Dir(mount))
	cmd := exec.Command(program(t), "drill", "run", "--config", m.drillConfig(t, "", mount, start, "sleep 1000"), "--key", m.path("target", "key"), "--control", m.target.control)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the daemons on the view run", func() (bool, string) {
		out, err := tryTool(toolTimeout, "pgrep", "-af", server+"/stubborn")
		return err == nil, out
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	gone()
}

// lagWatch samples how far the target is behind, told apart by phase.
type lagWatch struct {
	t     testing.TB
	phase atomic.Value
	stop  func()
	seen  map[string][]lagSample // of the sampler until stop
}

type lagSample struct {
	bytes   int64
	seconds float64
}

func watchLag(t testing.TB, a *agent) *lagWatch {
	w := &lagWatch{t: t, seen: map[string][]lagSample{}}
	w.phase.Store("before")
	agentAPI := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", a.control)
	}}}
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer agentAPI.CloseIdleConnections()
		for {
			select {
			case <-over:
				return
			case <-time.After(50 * time.Millisecond):
			}
			if s, err := statusOver(agentAPI); err == nil {
				f := s.follower("target")
				phase := w.phase.Load().(string)
				w.seen[phase] = append(w.seen[phase], lagSample{int64(f.LagBytes), f.RPOSeconds})
			}
		}
	}()
	w.stop = func() { close(over); <-ended }
	return w
}

// print shows lag and RPO, median, nine of ten, and longest.
func (w *lagWatch) print() {
	w.t.Helper()
	for _, phase := range []string{"without a drill", "the same beside", "in a drill"} {
		l := w.seen[phase]
		if len(l) == 0 {
			w.t.Errorf("nothing was measured %s", phase)
			continue
		}
		bytes, seconds := make([]int64, len(l)), make([]float64, len(l))
		for i, s := range l {
			bytes[i], seconds[i] = s.bytes, s.seconds
		}
		slices.Sort(bytes)
		slices.Sort(seconds)
		n := len(l)
		w.t.Logf("lag %-15s  %4d samples   KiB: median %d, p90 %d, longest %d   RPO ms: median %.1f, p90 %.1f, longest %.1f", phase, n,
			bytes[n/2]>>10, bytes[n*9/10]>>10, bytes[n-1]>>10, 1000*seconds[n/2], 1000*seconds[n*9/10], 1000*seconds[n-1])
	}
}

// statusOver asks an agent without a process for it.
func statusOver(c *http.Client) (s status, err error) {
	resp, err := c.Get("http://agent/v1/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}
