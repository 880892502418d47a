package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mirror-agent/blockdev/nbd/certtest"
)

// etcdServer is a real one, alone in its cluster.
type etcdServer struct {
	t      *testing.T
	args   []string
	client string
	cmd    *exec.Cmd
}

func startEtcd(t *testing.T, pki *etcdPKI) *etcdServer {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip("there is no etcd here: apt-get install etcd-server (scripts/deps.sh does)")
	}
	client, peer, scheme := freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1"), "http://"
	if pki != nil {
		scheme = "https://"
	}
	e := &etcdServer{t: t, client: client, args: []string{
		"--name", "one", "--data-dir", filepath.Join(shortDir(t), "etcd"), "--listen-client-urls", scheme + client, "--advertise-client-urls", scheme + client,
		"--listen-peer-urls", "http://" + peer, "--initial-advertise-peer-urls", "http://" + peer, "--initial-cluster", "one=http://" + peer, "--logger", "zap", "--log-level", "error",
	}}
	if pki != nil {
		e.args = append(e.args, "--client-cert-auth", "--trusted-ca-file", pki.file("ca-cert.pem"), "--cert-file", pki.file(pki.etcd+"-cert.pem"), "--key-file", pki.file(pki.etcd+"-key.pem"))
	}
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
}

func (e *etcdServer) kill() {
	if e.cmd != nil {
		_ = e.cmd.Process.Kill()
		_ = e.cmd.Wait()
		e.cmd = nil
	}
}

const leaseTTL = 4 * time.Second

// leasedMirror is a source and a target that promotes itself, with etcd between them; by TLS, if there is a pki.
func leasedMirror(t *testing.T, pki *etcdPKI) (*etcdServer, *testMirror) {
	t.Helper()
	e := startEtcd(t, pki)
	arbiter := []string{"--arbiter", "etcd://" + e.client + "/mirrors", "--arbiter-ttl", leaseTTL.String()}
	if pki != nil {
		arbiter = append(pki.flags("ca-cert.pem", "client"), "--arbiter", "etcds://"+e.client+"/mirrors", "--arbiter-ttl", leaseTTL.String())
	}
	arbiter = slices.Clip(arbiter)
	m := newMirror(t, layout{sourceArgs: append(arbiter, "--start-wait", "3s"), targetArgs: append(arbiter, "--auto-promote", "--unreachable-after", "2s")})
	m.start()
	m.source.until(startLimit, "the lease is held, and the arbiter knows that the target is in sync", func(s *status) bool {
		return s.State == "in sync" && s.Arbiter.Held && s.Arbiter.TargetRecorded
	})
	return e, m
}

// etcdPKI is one authority, whose certificates etcd and its clients show each other.
type etcdPKI struct{ dir, etcd string }

// newEtcdPKI makes certificates; that of etcd is good as a role.
func newEtcdPKI(t *testing.T, etcd certtest.Role) *etcdPKI {
	t.Helper()
	p := &etcdPKI{shortDir(t), string(etcd)}
	ca := certtest.New(t, "authority")
	ca.Write(p.dir, etcd)
	ca.Write(p.dir, certtest.Client)
	certtest.Replace(t, p.file("other-ca.pem"), certtest.New(t, "other").PEM)
	return p
}

func (p *etcdPKI) file(name string) string { return filepath.Join(p.dir, name) }

// flags are those of an agent that shows the certificate of a role, or none.
func (p *etcdPKI) flags(ca, role string) []string {
	f := []string{"--arbiter-tls-ca", p.file(ca)}
	if role != "" {
		f = append(f, "--arbiter-tls-cert", p.file(role+"-cert.pem"), "--arbiter-tls-key", p.file(role+"-key.pem"))
	}
	return f
}

// TestArbiterTLS: etcd asks for certificates. The lease goes to the target when the source is killed; an agent that trusts another authority,
// or shows no certificate, never leads and says why; a file that is not there is named at once.
func TestArbiterTLS(t *testing.T) {
	pki := newEtcdPKI(t, certtest.Both)
	e, m := leasedMirror(t, pki)
	m.source.kill()
	m.target.untilPrimary(30 * time.Second)
	m.target.kill()
	server := newEtcdPKI(t, certtest.Server)
	unfit := startEtcd(t, server)
	for _, c := range []struct {
		pki            *etcdPKI
		at             *etcdServer
		ca, role, says string
	}{
		{pki, e, "other-ca.pem", "client", "certificate signed by unknown authority"},
		{pki, e, "ca-cert.pem", "", "remote error: tls: "},
		{server, unfit, "ca-cert.pem", "client", "has to be good for clients, too"},
	} {
		m := newMirror(t, layout{sourceArgs: append(c.pki.flags(c.ca, c.role), "--arbiter", "etcds://"+c.at.client+"/others", "--arbiter-ttl", leaseTTL.String())})
		m.source.start()
		m.source.until(startLimit, "it says why etcd does not answer: "+c.says, func(s *status) bool { return strings.Contains(s.Arbiter.Problem, c.says) })
		if out := m.source.mustCommand("explain"); !strings.Contains(out, c.says) {
			t.Errorf("explain does not say %q:\n%s", c.says, out)
		}
		if conn, err := dialNBD(m.source.nbd, mirrorName); err == nil {
			conn.close()
			t.Error("it serves without a lease")
		}
		m.source.kill()
	}
	bad := newMirror(t, layout{sourceArgs: append(pki.flags("missing.pem", "client"), "--arbiter", "etcds://"+e.client+"/others")})
	if r := runAgent(t, bad.source.args...); r.code == 0 || !strings.Contains(r.stderr, "arbiter-tls-ca") || !strings.Contains(r.stderr, "missing.pem") {
		t.Errorf("a file that is not there: %+v", r)
	}
}

// untilPrimary waits until an agent has promoted itself.
func (a *agent) untilPrimary(within time.Duration) time.Duration {
	a.t.Helper()
	return eventually(a.t, within, a.name+" has promoted itself", func() (bool, string) {
		s, err := a.status()
		if err != nil {
			return false, err.Error()
		}
		return s.Role == "primary", s.State + ": " + s.Reason
	})
}

// TestArbiterSourceKilled: the source is killed under load; the target promotes itself once the lease has passed, with all that was
// flushed; the old source is fenced.
func TestArbiterSourceKilled(t *testing.T) {
	_, m := leasedMirror(t, nil)
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 16, 10)
	ld.untilAnswered(t, 800)
	if r := m.target.command("promote"); r.code != 1 {
		t.Fatalf("promoted beside a live source: %+v", r)
	}
	m.source.kill()
	took := m.target.untilPrimary(30 * time.Second)
	if err := ld.join(); err != nil {
		t.Fatal(err)
	}
	t.Logf("primary %s after the kill, the lease is of %s", took.Round(time.Millisecond), leaseTTL)
	c = m.target.dial(startLimit)
	if err := l.verify(c.read, allFlushed); err != nil {
		t.Fatalf("on the promoted target: %v", err)
	}
	if err := l.settle(c.read); err != nil {
		t.Fatal(err)
	}
	ld = l.startLoad(c, newRand(t), 4, 20) // alone: the record says so first
	ld.untilAnswered(t, 200)
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	c.close()
	m.source.start()
	m.source.until(30*time.Second, "the old source is fenced, or follows already: it has nothing of its own", func(s *status) bool {
		return s.State == "fenced" || s.Role == "secondary"
	})
}

// TestArbiterKilled: without an arbiter the source lets everything wait and says so, and nobody is promoted; when it is back,
// everything goes on.
func TestArbiterKilled(t *testing.T) {
	e, m := leasedMirror(t, nil)
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 10)
	ld.untilAnswered(t, 200)
	e.kill()
	m.source.until(30*time.Second, "frozen", func(s *status) bool { return s.State == "frozen" })
	if out := m.source.mustCommand("explain"); !strings.Contains(out, "frozen") || !strings.Contains(out, "does not answer") || !strings.Contains(out, e.client) {
		t.Errorf("explain says\n%s", out)
	}
	_, answered := l.counts()
	m.toTarget[0].Blackhole(true)
	m.target.until(30*time.Second, "no source is heard", func(s *status) bool { return s.State == "waiting" })
	m.target.untilRefused("does not answer")
	if _, more := l.counts(); more != answered {
		t.Errorf("%d writes were answered without a lease", more-answered)
	}
	if s := m.target.mustStatus(); s.Role != "secondary" {
		t.Fatalf("the target is %s", s.Role)
	}
	m.toTarget[0].Blackhole(false)
	e.start()
	ld.untilAnswered(t, int64(answered+200))
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	if err := l.verify(c.read, allAcked); err != nil {
		t.Fatal(err)
	}
	c.close()
}

// TestArbiterSourceStopped: the source is stopped for longer than its lease; the target promotes itself. Woken up, the source
// answers nothing more, neither what it had begun nor what it is asked then.
func TestArbiterSourceStopped(t *testing.T) {
	_, m := leasedMirror(t, nil)
	l := newLedger(baseSeed, m.size)
	c := m.source.dial(startLimit)
	ld := l.startLoad(c, newRand(t), 8, 10)
	ld.untilAnswered(t, 400)
	if err := ld.stop(); err != nil {
		t.Fatal(err)
	}
	m.source.freeze()
	eventually(t, startLimit, "the source stands still", func() (bool, string) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.source.pid()))
		if err != nil {
			return false, err.Error()
		}
		_, state, _ := strings.Cut(string(b), ") ")
		return strings.HasPrefix(state, "T"), state
	})
	defer func() {
		if t.Failed() {
			m.source.thaw()
		}
	}()
	answer := make(chan error, 1)
	go func() { // it lies in the socket until the source is woken up
		if err := c.write(0, make([]byte, ledgerBlock), false); err != nil {
			answer <- err
			return
		}
		answer <- nil
	}()
	m.target.untilPrimary(30 * time.Second)
	nc := m.target.dial(startLimit)
	if err := l.verify(nc.read, allFlushed); err != nil {
		t.Fatalf("on the promoted target: %v", err)
	}
	nc.close()
	if len(answer) > 0 {
		t.Fatalf("a process that stands still has answered: %v", <-answer)
	}
	m.source.thaw()
	select {
	case err := <-answer:
		if err == nil {
			t.Fatal("the woken source has answered a write")
		}
		t.Log("the write that waited:", err)
	case <-time.After(30 * time.Second):
		t.Log("the write that waited has no answer")
	}
	m.source.until(30*time.Second, "fenced", func(s *status) bool { return s.State == "fenced" && strings.Contains(fmt.Sprint(s.Reason), "2.0") })
}
