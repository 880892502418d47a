package mirror

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"mirror-agent/journal"
)

// etcdServer is a real one in a process of its own.
type etcdServer struct {
	t       *testing.T
	args    []string
	address string
	cmd     *exec.Cmd
}

func startEtcd(t *testing.T) *etcdServer {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip("there is no etcd here: apt-get install etcd-server (scripts/deps.sh does)")
	}
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	client, peer := free(), free()
	e := &etcdServer{t: t, address: client, args: []string{
		"--name", "one", "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--listen-client-urls", "http://" + client, "--advertise-client-urls", "http://" + client,
		"--listen-peer-urls", "http://" + peer, "--initial-advertise-peer-urls", "http://" + peer, "--initial-cluster", "one=http://" + peer, "--log-level", "error", "--logger", "zap",
	}}
	t.Cleanup(e.kill)
	e.start()
	return e
}

func (e *etcdServer) start() {
	e.t.Helper()
	e.cmd = exec.Command("etcd", e.args...)
	e.cmd.Env = append(os.Environ(), "ETCD_UNSUPPORTED_ARCH="+runtime.GOARCH)
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	probe := e.client("probe", 4*time.Second)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := probe.read(e.t.Context())
		if err == nil {
			return
		}
		if time.Now().After(end) {
			e.t.Fatalf("etcd does not answer: %v", err)
		}
	}
}

func (e *etcdServer) kill() {
	if e.cmd != nil {
		_ = e.cmd.Process.Kill()
		_ = e.cmd.Wait()
		e.cmd = nil
	}
}

func (e *etcdServer) spec() string { return "etcd://" + e.address + "/mirrors" }

func (e *etcdServer) client(mirror string, ttl time.Duration) *etcd {
	e.t.Helper()
	o, err := parseEtcd(e.spec())
	if err != nil {
		e.t.Fatal(err)
	}
	o.mirror, o.ttl = mirror, ttl
	c, err := newEtcd(o)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestEtcd: one holds the lease at a time; a target gets it when it has passed, if the record names it; whoever was there before is
// told that its time is over.
func TestEtcd(t *testing.T) {
	server := startEtcd(t)
	const ttl = 2 * time.Second
	ctx := t.Context()
	one, two := server.client("vol", ttl), server.client("vol", ttl)
	first := generation(1, 0, 100)
	source := Holder{ID: memberID{1}, Node: "nyc1", Generation: first}
	target := Holder{ID: memberID{2}, Node: "fra2", Generation: first}
	ask := func(r Ruling, err error) Ruling {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	refused := func(r Ruling, words string) {
		t.Helper()
		if r.TTL != 0 || !strings.Contains(r.Refused, words) {
			t.Fatalf("%+v, want a refusal with %q", r, words)
		}
	}
	refused(ask(two.Grant(ctx, target, false)), "no record of this mirror")
	if r := ask(one.Renew(ctx, source)); r.TTL < time.Second || len(r.Recorded) != 0 {
		t.Fatalf("%+v", r)
	}
	refused(ask(two.Grant(ctx, target, false)), "nyc1 has the lease")
	refused(ask(two.Renew(ctx, target)), "nyc1 has the lease") // the same generation: of this number it is the one, but it is held
	source.Eligible = []memberID{target.ID}
	if r := ask(one.Renew(ctx, source)); r.TTL == 0 || len(r.Recorded) != 1 {
		t.Fatalf("%+v", r)
	}
	source.Eligible = nil
	ask(one.Renew(ctx, source))
	free := func(c *etcd, who Holder) (r Ruling) { // once the lease has passed
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if r = ask(c.Grant(ctx, who, false)); !strings.Contains(r.Refused, "has the lease") {
				return r
			}
			if time.Now().After(end) {
				t.Fatalf("%+v", r)
			}
		}
	}
	refused(free(two, target), "this host lacks what was flushed")
	source.Eligible = []memberID{target.ID}
	if r := ask(one.Renew(ctx, source)); r.TTL == 0 { // it was away for longer than its lease, and nobody had it meanwhile
		t.Fatalf("%+v", r)
	}
	if r := ask(one.Renew(ctx, source)); len(r.Recorded) != 1 {
		t.Fatalf("%+v", r)
	}
	r := free(two, target)
	if r.TTL == 0 || r.Generation.Major != 2 || r.Generation.ID == ([16]byte{}) {
		t.Fatalf("%+v", r)
	}
	if r := ask(one.Renew(ctx, source)); !r.Superseded || !strings.Contains(r.Refused, "fra2 was leased generation 2.0") {
		t.Fatalf("%+v", r)
	}
	target.Generation = r.Generation
	target.Generation.First = 4711
	if r := ask(two.Renew(ctx, target)); r.TTL == 0 {
		t.Fatalf("%+v", r)
	}
	other := target
	other.Generation.ID = [16]byte{99}
	third := server.client("vol", ttl)
	if r := ask(third.Renew(ctx, other)); !r.Superseded {
		t.Fatalf("another generation 2.0: %+v", r)
	}
	server.kill()
	if _, err := two.Renew(ctx, target); err == nil {
		t.Fatal("a server that is gone has answered")
	}
	server.start()
	if r := ask(two.Renew(ctx, target)); r.TTL == 0 { // the lease has outlived its server
		t.Fatalf("%+v", r)
	}
}

// TestParseEtcd: what is an address of etcd, and what is wrong otherwise.
func TestParseEtcd(t *testing.T) {
	o, err := parseEtcd("etcds://a:2379,b:2379/x/y/")
	if err != nil || !o.tls || o.prefix != "x/y" || fmt.Sprint(o.endpoints) != "[a:2379 b:2379]" {
		t.Fatalf("%+v %v", o, err)
	}
	for s, words := range map[string]string{
		"zookeeper://a:1/x": "choose operator", "etcd://a/x": "no HOST:PORT", "etcd://a:1": "prefix", "etcd://a:1,/x": "no HOST:PORT", "etcd:///x": "no HOST:PORT", "": "choose",
	} {
		if _, err := parseEtcd(s); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// TestTenure: nothing is answered beyond what is surely leased, and a FLUSH waits for all whom the arbiter may choose.
func TestTenure(t *testing.T) {
	var x tenure
	if x.held(0) {
		t.Error("held before it was asked for")
	}
	x.renewed(100, 10*time.Second)
	until := int64(100 + 8*time.Second)
	if !x.held(until-1) || x.held(until) {
		t.Errorf("held until %d, want %d", x.until, until)
	}
	x.renewed(50, 10*time.Second) // an answer that came late
	x.renewed(200, 0)
	if x.until != until {
		t.Errorf("until %d", x.until)
	}
	one, two := memberID{1}, memberID{2}
	has := map[memberID]journal.LSN{one: 10, two: 20}
	covers := func(lsn journal.LSN) bool { return x.covers(lsn, func(id memberID) journal.LSN { return has[id] }) }
	if !covers(99) {
		t.Error("nobody is to be waited for")
	}
	x.records([]memberID{one})
	if covers(11) || !covers(10) || x.fresh {
		t.Error("who is about to be recorded has to have it")
	}
	x.hasRecorded([]memberID{one})
	x.records([]memberID{two}) // both are possible until the arbiter has answered
	if covers(20) || !covers(10) || x.fresh {
		t.Error("the record may name either")
	}
	x.hasRecorded([]memberID{two})
	if !covers(20) || covers(21) || !x.fresh {
		t.Error("only the second is recorded")
	}
	x.records([]memberID{two})
	if !x.fresh {
		t.Error("nothing has changed")
	}
}

// TestLeaseAtTheAnswer: a write that was let in while the lease was held is not answered when it is over: the process may have been
// stopped in between. It is answered when the lease was renewed.
func TestLeaseAtTheAnswer(t *testing.T) {
	p := newPromise(ModeFlush, OnLossContinue, 0, 0)
	p.lease = newLeased(0)
	now := int64(1000)
	p.lease.now = func() int64 { return now }
	p.arbiterSays(now, Ruling{TTL: 10 * time.Second})
	if err := p.admit(t.Context()); err != nil {
		t.Fatal(err)
	}
	now += int64(9 * time.Second)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.admit(over); err == nil {
		t.Error("a write was let in")
	}
	if _, err := p.written(over, 5); err == nil {
		t.Error("a write was answered")
	}
	if err := p.wait(over, 5); err == nil {
		t.Error("a flush was answered")
	}
	p.arbiterSays(now, Ruling{TTL: 10 * time.Second})
	if _, err := p.written(t.Context(), 5); err != nil {
		t.Error(err)
	}
	if err := p.wait(t.Context(), 5); err != nil {
		t.Error(err)
	}
}
