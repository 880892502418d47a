package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// postgres is Debian's PostgreSQL with a cluster of its own on the source's filesystem. Nothing of it is the system's: the programs are
// called by their path, sockets and logs are in run.
type postgres struct {
	t     testing.TB
	bin   string // /usr/lib/postgresql/NN/bin
	data  string
	run   string // sockets and logs; open to the database's user
	creds *syscall.Credential
	as    string // what a line of shell begins with to run as that user

	mu   sync.Mutex // guards below
	tick int64      // of the order in which things happened
	rows map[int][]committed
}

// committed is when a row was begun and when its commit was answered (0: not yet).
type committed struct{ begun, answered int64 }

// newPostgres makes a cluster in a mounted directory: with checksums, durable commits, and checkpoints often enough that some
// are in the middle of everything.
func newPostgres(t testing.TB, mount string) *postgres {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/pg_amcheck")
	if err != nil || len(found) == 0 {
		t.Skip("needs PostgreSQL: run scripts/deps.sh")
	}
	slices.Sort(found)
	u, err := osuser.Lookup("postgres")
	if err != nil {
		t.Fatalf("PostgreSQL without its user: %v", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	p := &postgres{
		t: t, bin: filepath.Dir(found[len(found)-1]), data: filepath.Join(mount, "pg"), run: shortDir(t), rows: map[int][]committed{},
		creds: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, as: "setpriv --reuid=postgres --regid=postgres --clear-groups",
	}
	for _, dir := range []string{p.data, p.run, filepath.Join(p.run, "drill")} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chown(dir, int(uid), int(gid))); err != nil {
			t.Fatal(err)
		}
	}
	openTo(t, filepath.Dir(mount))
	openTo(t, filepath.Dir(p.run))
	settings := strings.Join([]string{
		"listen_addresses = ''", "fsync = on", "synchronous_commit = on", "full_page_writes = on", "shared_buffers = 16MB", "max_connections = 12",
		"max_wal_size = 8MB", "min_wal_size = 4MB", "checkpoint_timeout = 30s", "autovacuum_naptime = 1s", "max_parallel_workers = 0", "log_checkpoints = on",
	}, "\n")
	cmd := p.program("initdb", "--data-checksums", "--wal-segsize=1", "--no-locale", "--encoding=UTF8", "--auth=trust", "--username=postgres", p.data)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(p.data, "postgresql.auto.conf"), []byte(settings+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// openTo lets other users through to a directory of the test.
func openTo(t testing.TB, dir string) {
	t.Helper()
	for {
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode()&0o001 != 0 {
			return
		}
		if err := os.Chmod(dir, st.Mode().Perm()|0o011); err != nil {
			t.Fatal(err)
		}
		dir = filepath.Dir(dir)
	}
}

// program is one of PostgreSQL's, run by its user; it ends with this process.
func (p *postgres) program(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, name), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.creds, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start runs the server until the returned function is called or the test ends.
func (p *postgres) start() (stop func()) {
	p.t.Helper()
	cmd := p.program("postgres", "-D", p.data, "-k", p.run)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	once := sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // a fast end
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			p.t.Errorf("PostgreSQL did not end")
		}
		if p.t.Failed() {
			p.t.Logf("PostgreSQL on the source said:\n%s", tailText(log.String(), 4<<10))
		}
	})
	p.t.Cleanup(once)
	eventually(p.t, startLimit, "PostgreSQL answers", func() (bool, string) {
		out, err := tryTool(10*time.Second, filepath.Join(p.bin, "pg_isready"), "-h", p.run)
		return err == nil, out
	})
	return once
}

// query runs SQL on the source.
func (p *postgres) query(sql string) string {
	p.t.Helper()
	return tool(p.t, filepath.Join(p.bin, "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", p.run, "-U", "postgres", "-c", sql)
}

// client is one who commits numbered rows; each also in the sum beside them, in the same transaction.
type client struct {
	p    *postgres
	id   int
	in   io.WriteCloser
	out  *bufio.Scanner
	errs bytes.Buffer
	cmd  *exec.Cmd
}

func (p *postgres) connect(id int) *client {
	p.t.Helper()
	c := &client{p: p, id: id}
	c.cmd = exec.Command(filepath.Join(p.bin, "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", p.run, "-U", "postgres")
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.cmd.Stderr = &c.errs
	in, err1 := c.cmd.StdinPipe()
	out, err2 := c.cmd.StdoutPipe()
	if err := errors.Join(err1, err2, c.cmd.Start()); err != nil {
		p.t.Fatal(err)
	}
	c.in, c.out = in, bufio.NewScanner(out)
	p.t.Cleanup(func() { c.end() })
	return c
}

func (c *client) end() {
	c.in.Close()
	_ = c.cmd.Wait()
}

// commit commits the client's next row and notes when it was answered.
func (c *client) commit() error {
	p := c.p
	p.mu.Lock()
	p.tick++
	p.rows[c.id] = append(p.rows[c.id], committed{begun: p.tick})
	n := len(p.rows[c.id])
	p.mu.Unlock()
	fmt.Fprintf(c.in, "begin; insert into rows values(%d, %d, '%s'); update sums set n = n + 1 where client = %[1]d; commit; select 'done %[2]d';\n", c.id, n, row(n+c.id))
	if !c.out.Scan() || c.out.Text() != fmt.Sprintf("done %d", n) {
		c.end()
		return fmt.Errorf("client %d, row %d: psql said %q (%v): %s", c.id, n, c.out.Text(), c.out.Err(), &c.errs)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tick++
	p.rows[c.id][n-1].answered = p.tick
	return nil
}

// moment is how many rows of each client had been begun, and how many answered.
func (p *postgres) moment() (begun, answered map[int]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	begun, answered = map[int]int{}, map[int]int{}
	for id, l := range p.rows {
		begun[id] = len(l)
		for answered[id] < len(l) && l[answered[id]].answered != 0 {
			answered[id]++
		}
	}
	return begun, answered
}

// total is how many rows were answered.
func (p *postgres) total() (n int) {
	_, answered := p.moment()
	for _, k := range answered {
		n += k
	}
	return n
}

// judge says what is wrong with the rows that somebody found: each client's are 1 to n as they were written, the sums say so too, nobody has
// less than least or more than most, and none is missing that had been answered before one that is there was begun.
func (p *postgres) judge(rows, sums string, least, most map[int]int) error {
	have := map[int]int{}
	for line := range strings.Lines(rows) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "|", 3)
		if len(f) != 3 {
			return fmt.Errorf("a row %q", line)
		}
		id, err1 := strconv.Atoi(f[0])
		n, err2 := strconv.Atoi(f[1])
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if n != have[id]+1 || f[2] != row(n+id) {
			return fmt.Errorf("client %d: after row %d comes row %d with %.40q", id, have[id], n, f[2])
		}
		have[id] = n
	}
	for line := range strings.Lines(sums) {
		var id, n int
		if _, err := fmt.Sscanf(line, "%d|%d", &id, &n); err != nil {
			return fmt.Errorf("a sum %q: %w", line, err)
		}
		if have[id] != n {
			return fmt.Errorf("client %d has %d rows, its sum says %d", id, have[id], n)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var newest int64
	for id, n := range have {
		if n > len(p.rows[id]) {
			return fmt.Errorf("client %d has %d rows, %d were ever begun", id, n, len(p.rows[id]))
		}
		newest = max(newest, p.rows[id][n-1].begun)
	}
	for id, l := range p.rows {
		if have[id] < least[id] || have[id] > most[id] {
			return fmt.Errorf("client %d has %d rows; %d were committed by then and %d begun", id, have[id], least[id], most[id])
		}
		if n := have[id]; n < len(l) && l[n].answered != 0 && l[n].answered < newest {
			return fmt.Errorf("client %d has %d rows, its next was committed before one that is there was begun", id, n)
		}
	}
	return nil
}
