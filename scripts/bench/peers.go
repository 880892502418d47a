package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// peer is one of what is compared: its processes and its results.
type peer struct {
	name     string
	socket   string
	control  string // of an agent that is asked how far its device is; else empty
	procs    []*exec.Cmd
	commands []string
	results  map[string][]result // by load
}

func (p *peer) keep(load string, r result) {
	if p.results == nil {
		p.results = map[string][]result{}
	}
	p.results[load] = append(p.results[load], r)
}

// bench owns the files and processes.
type bench struct {
	o       options
	dir     string
	sockets string
	started []*exec.Cmd

	unapplied []unappliedLog // at each restart
}

func (b *bench) file(name string) string   { return filepath.Join(b.dir, name) }
func (b *bench) socket(name string) string { return filepath.Join(b.sockets, name) }

// fill makes one file of noise; every peer gets copies of it.
func (b *bench) fill() error {
	f, err := os.Create(b.file("noise"))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.Reader, int64(b.o.sizeMiB)<<20); err != nil {
		return err
	}
	return f.Sync()
}

func (b *bench) copies(names ...string) error {
	for _, n := range names {
		if out, err := exec.Command("cp", "--reflink=never", b.file("noise"), b.file(n)).CombinedOutput(); err != nil {
			return fmt.Errorf("cp: %w: %s", err, out)
		}
	}
	syscall.Sync()
	return nil
}

// start runs a server of p; it ends with the bench.
func (b *bench) start(p *peer, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	log, err := os.Create(b.file(fmt.Sprintf("%s-%d.log", p.name, len(p.procs))))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.procs = append(p.procs, cmd)
	b.started = append(b.started, cmd)
	p.commands = append(p.commands, strings.NewReplacer(b.dir, "DIR", b.sockets, "SOCK").Replace(filepath.Base(name)+" "+strings.Join(args, " ")))
	return nil
}

// end ends all processes, the newest first.
func (b *bench) end() {
	for i := len(b.started) - 1; i >= 0; i-- {
		cmd := b.started[i]
		// It may have ended by itself: nothing here is an error that matters.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
	}
}

// until polls ok every 50 ms.
func (b *bench) until(ctx context.Context, p *peer, limit time.Duration, ok func() bool) error {
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			return errors.New("not ready in time:\n" + b.logs(p))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

func (b *bench) logs(p *peer) string {
	var all strings.Builder
	for i := range p.procs {
		text, err := os.ReadFile(b.file(fmt.Sprintf("%s-%d.log", p.name, i)))
		fmt.Fprintf(&all, "%s%v\n", text, err)
	}
	return all.String()
}

func exists(path string) func() bool {
	return func() bool { _, err := os.Stat(path); return err == nil }
}

// listening: somebody does, at a unix socket; its file is there before.
func listening(path string) func() bool { return listeningAt("unix", path) }

func listeningAt(network, address string) func() bool {
	return func() bool {
		c, err := net.Dial(network, address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
}

func (b *bench) startNbdkit(ctx context.Context, p *peer) error {
	p.socket = b.socket("nbdkit")
	_ = os.Remove(p.socket) // of the table before
	if err := b.copies("nbdkit.img"); err != nil {
		return err
	}
	if err := b.start(p, "nbdkit", "-f", "-U", p.socket, "file", b.file("nbdkit.img")); err != nil {
		return err
	}
	return b.until(ctx, p, 10*time.Second, listening(p.socket))
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// startQemu: the target is a qemu-nbd; the mirror job copies everything (the
// files are equal already, it does so all the same) and from then on answers a
// write when both have it.
func (b *bench) startQemu(ctx context.Context, p *peer) error {
	p.socket = b.socket("qemu")
	addr, err := freePort()
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(addr)
	if err := b.copies("qemu.img", "qemu-target.img"); err != nil {
		return err
	}
	if err := b.start(p, "qemu-nbd", "-f", "raw", "--cache=writeback", "--persistent", "--shared=4", "-b", "127.0.0.1", "-p", port, "-x", "target", b.file("qemu-target.img")); err != nil {
		return err
	}
	if err := b.until(ctx, p, 10*time.Second, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}); err != nil {
		return err
	}
	qmp := b.socket("qmp")
	if err := b.start(p, "qemu-storage-daemon",
		"--chardev", "socket,id=qmp,path="+qmp+",server=on,wait=off", "--monitor", "qmp",
		"--blockdev", "driver=file,node-name=file,filename="+b.file("qemu.img"), "--blockdev", "driver=raw,node-name=source,file=file",
		"--blockdev", "driver=nbd,node-name=target,server.type=inet,server.host=127.0.0.1,server.port="+port+",export=target"); err != nil {
		return err
	}
	if err := b.until(ctx, p, 10*time.Second, exists(qmp)); err != nil {
		return err
	}
	commands := []string{
		`{"execute":"qmp_capabilities"}`,
		`{"execute":"blockdev-mirror","arguments":{"job-id":"mirror","device":"source","target":"target","sync":"full","copy-mode":"write-blocking","filter-node-name":"mirror-top"}}`,
		`{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{"path":"` + p.socket + `"}}}}`,
		`{"execute":"block-export-add","arguments":{"type":"nbd","id":"export","node-name":"mirror-top","name":"","writable":true}}`,
	}
	for _, c := range commands {
		p.commands = append(p.commands, "  QMP "+strings.ReplaceAll(c, b.sockets, "SOCK"))
	}
	return converse(qmp, commands)
}

// converse sends QMP commands and waits for each one's answer; after the mirror
// job also for the word that it is ready.
func converse(socket string, commands []string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	r := bufio.NewReader(c)
	await := func(words ...string) error {
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return err
			}
			if bytes.HasPrefix(line, []byte(`{"error"`)) {
				return fmt.Errorf("qmp: %s", line)
			}
			found := true
			for _, w := range words {
				found = found && bytes.Contains(line, []byte(w))
			}
			if found {
				return nil
			}
		}
	}
	if err := await(`"QMP"`); err != nil {
		return err
	}
	for _, cmd := range commands {
		if _, err := fmt.Fprintln(c, cmd); err != nil {
			return err
		}
		if err := await(`"return"`); err != nil {
			return fmt.Errorf("%s: %w", cmd, err)
		}
		if strings.Contains(cmd, "blockdev-mirror") {
			if err := await("JOB_STATUS_CHANGE", `"ready"`); err != nil {
				return fmt.Errorf("%s: %w", cmd, err)
			}
		}
	}
	return nil
}
