package integration

import (
	"bufio"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// portHost is a portProcess inside a host's network, seen from the test.
type portHost struct {
	t    testing.TB
	name string
	host netHost
	node nodeSettings
	log  string

	mu      sync.Mutex // guards the fields below, and writing orders
	cmd     *exec.Cmd
	in      io.WriteCloser
	lastID  int
	waiting map[int]chan portAnswer
	ended   chan struct{} // closed when the process has ended
}

const portNumber = 7400

// keySeeds are the private keys of the three hosts.
var hostKeys = map[string][]byte{
	"source": seedOf(1), "target": seedOf(2), "backup": seedOf(3),
}

func seedOf(b byte) []byte {
	s := make([]byte, ed25519.SeedSize)
	s[0] = b
	return s
}

// nodeOf are the settings of a host of three that know each other's keys.
func nodeOf(name string, listen ...string) nodeSettings {
	s := nodeSettings{Name: name, Seed: hostKeys[name], Listen: listen}
	for other, seed := range hostKeys {
		if other != name {
			s.Peers = append(s.Peers, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
		}
	}
	return s
}

// startHost starts a process with a node in a host's network.
func startHost(t testing.TB, host netHost, node nodeSettings) *portHost {
	t.Helper()
	h := &portHost{t: t, name: node.Name, host: host, node: node, log: filepath.Join(shortDir(t), node.Name+".log")}
	t.Cleanup(func() {
		h.kill()
		if t.Failed() {
			if said := tail(h.log, 8<<10); said != "" {
				t.Logf("%s said:\n%s", h.name, said)
			}
		}
	})
	h.start()
	return h
}

// start runs the process and its node; it must not be running.
func (h *portHost) start() {
	h.t.Helper()
	log, err := os.OpenFile(h.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	args := h.host.inside(self)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), portProcessVar+"=1")
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatalf("start %s: %v", h.name, err)
	}
	h.mu.Lock()
	h.cmd, h.in, h.waiting, h.ended = cmd, in, map[int]chan portAnswer{}, make(chan struct{})
	ended := h.ended
	h.mu.Unlock()
	go h.read(cmd, out, ended)
	h.order(portOrder{Do: "node", Node: &h.node})
}

func (h *portHost) read(cmd *exec.Cmd, out io.Reader, ended chan struct{}) {
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			break
		}
		var a portAnswer
		if json.Unmarshal(line, &a) != nil {
			continue
		}
		h.mu.Lock()
		c := h.waiting[a.ID]
		delete(h.waiting, a.ID)
		h.mu.Unlock()
		if c != nil {
			c <- a
		}
	}
	_ = cmd.Wait()
	close(ended)
}

var errHostGone = errors.New("the process has ended")

// try gives an order and waits for the answer; into may be nil.
func (h *portHost) try(o portOrder, into any) error {
	h.mu.Lock()
	h.lastID++
	o.ID = h.lastID
	c := make(chan portAnswer, 1)
	h.waiting[o.ID] = c
	ended := h.ended
	line, err := json.Marshal(o)
	if err == nil {
		_, err = h.in.Write(append(line, '\n'))
	}
	h.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%w: %w", errHostGone, err)
	}
	select {
	case a := <-c:
		if a.Error != "" {
			return errors.New(a.Error)
		}
		if into == nil || a.Data == nil {
			return nil
		}
		return json.Unmarshal(a.Data, into)
	case <-ended:
		return errHostGone
	case <-time.After(90 * time.Second):
		return errors.New("no answer for 90 s")
	}
}

// order is try that must succeed.
func (h *portHost) order(o portOrder) {
	h.t.Helper()
	h.ask(o, nil)
}

func (h *portHost) ask(o portOrder, into any) {
	h.t.Helper()
	if err := h.try(o, into); err != nil {
		h.t.Fatalf("%s: %s %s: %v", h.name, o.Do, o.Client, err)
	}
}

func (h *portHost) signal(s syscall.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil {
		_ = h.cmd.Process.Signal(s)
	}
}

func (h *portHost) pid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cmd.Process.Pid
}

// kill ends the process at once, as a host that loses its power.
func (h *portHost) kill() {
	h.mu.Lock()
	cmd, ended := h.cmd, h.ended
	h.cmd = nil
	h.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Kill()
	<-ended
}

// user is a registered client on a host.
type user struct {
	*portHost
	client string
}

func (h *portHost) register(client string) *user {
	h.t.Helper()
	h.order(portOrder{Do: "register", Client: client})
	return &user{h, client}
}

func (u *user) do(o portOrder)      { u.t.Helper(); o.Client = u.client; u.order(o) }
func (u *user) open(s portSettings) { u.t.Helper(); u.do(portOrder{Do: "open", Port: &s}) }

// load begins to send; without a count it goes on until unload.
func (u *user) load(s loadSettings) {
	u.t.Helper()
	if s.Kind == "" {
		s.Kind = "send"
	}
	s.Seed = baseSeed
	u.do(portOrder{Do: "load", Load: &s})
}

func (u *user) unload(streams ...byte) {
	u.t.Helper()
	for _, s := range streams {
		u.do(portOrder{Do: "unload", Load: &loadSettings{Stream: s}})
	}
}

func (u *user) view() (v portView) {
	u.t.Helper()
	u.ask(portOrder{Do: "stats", Client: u.client}, &v)
	return v
}

func (u *user) events() (l []eventLine) {
	u.t.Helper()
	u.ask(portOrder{Do: "events", Client: u.client}, &l)
	return l
}

// until waits for a state of the port.
func (u *user) until(within time.Duration, what string, ok func(*portView) bool) (v portView) {
	u.t.Helper()
	eventually(u.t, within, u.name+"/"+u.client+": "+what, func() (bool, string) {
		v = u.view()
		return ok(&v), v.brief()
	})
	return v
}

// untilPaths waits until so many paths carry data.
func (u *user) untilPaths(n int) portView {
	u.t.Helper()
	return u.until(portLimit, fmt.Sprintf("%d paths are active", n), func(v *portView) bool { return v.count("active") == n })
}

// untilHanded waits until the client was handed n more messages than from.
func (u *user) untilHanded(from, n uint64) {
	u.t.Helper()
	u.until(portLimit, fmt.Sprintf("%d messages more than %d", n, from), func(v *portView) bool { return v.Handed >= from+n })
}

// portLimit is what a test waits for at most until a port has done something.
const portLimit = 40 * time.Second

func (v portView) count(state string) (n int) {
	for _, p := range v.Paths {
		if p.State == state {
			n++
		}
	}
	return n
}

func (v portView) path(id uint32) pathView {
	for _, p := range v.Paths {
		if p.ID == id {
			return p
		}
	}
	return pathView{}
}

func (v portView) brief() string {
	b := fmt.Sprintf("%s, target %d %s, session %s, handed %d, sent %d, queued %d", v.State, v.Index, v.Target, v.Session, v.Handed, v.Sent, v.Queued)
	for _, p := range v.Paths {
		b += fmt.Sprintf(" [%d %s→%s %s %s]", p.ID, p.Local, p.Remote, p.State, p.Reason)
	}
	return b
}

// eventKinds writes events as doc.go of the data port does.
func eventKinds(l []eventLine) string {
	var kinds []string
	for _, e := range l {
		k := e.Kind
		if e.Path != 0 {
			k += fmt.Sprint(e.Path)
		}
		kinds = append(kinds, k)
	}
	return strings.Join(kinds, " ")
}
