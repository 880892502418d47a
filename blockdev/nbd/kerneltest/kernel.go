package kerneltest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

const (
	familyID = 0x21
	groupID  = 7
)

// Kernel is the fake driver. Its exported fields are set before it is used.
type Kernel struct {
	// Root is where sys/block/nbdN is written.
	Root string
	// NoDriver is a kernel without the module; Unprivileged refuses every change.
	NoDriver, Unprivileged bool

	mu      sync.Mutex // guards what follows
	devices map[int]*device
	members map[*Conn]struct{}
	running sync.WaitGroup
}

// New returns a driver whose files are below root.
func New(root string) *Kernel {
	return &Kernel{Root: root, devices: map[int]*device{}, members: map[*Conn]struct{}{}}
}

// Dial returns a generic netlink socket.
func (k *Kernel) Dial() *Conn {
	return &Conn{kernel: k, inbox: make(chan genetlink.Message, 64), done: make(chan struct{})}
}

// Close disconnects everything and waits for what runs.
func (k *Kernel) Close() {
	k.mu.Lock()
	all := k.devices
	k.devices = map[int]*device{}
	k.mu.Unlock()
	for _, d := range all {
		d.disconnect()
	}
	k.running.Wait()
}

// Settings are what CONNECT and RECONFIGURE said last of a device.
type Settings struct {
	Size, BlockSize, Flags   uint64
	Timeout, DeadConnTimeout time.Duration
	Identifier               string
}

// Settings of a device that is connected.
func (k *Kernel) Settings(index int) Settings { return k.device(index).snapshot() }

// LiveLinks of a device.
func (k *Kernel) LiveLinks(index int) int { return k.device(index).live() }

// Connected says whether there is such a device.
func (k *Kernel) Connected(index int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.devices[index] != nil
}

func (k *Kernel) device(index int) *device {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[index]
	if d == nil {
		panic(fmt.Sprintf("kerneltest: nbd%d is not connected", index))
	}
	return d
}

// Write, Read and Flush are what a filesystem on the device would ask for. They wait as it would.
func (k *Kernel) Write(index int, p []byte, off int64) error {
	return k.device(index).do(cmdWrite, uint64(off), p, nil)
}

func (k *Kernel) Read(index int, p []byte, off int64) error {
	return k.device(index).do(cmdRead, uint64(off), nil, p)
}

func (k *Kernel) Flush(index int) error { return k.device(index).do(cmdFlush, 0, nil, nil) }

// linkDead tells the group.
func (k *Kernel) linkDead(index int) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(index))
	p, err := e.Encode()
	if err != nil {
		panic(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.members {
		select {
		case c.inbox <- genetlink.Message{Header: genetlink.Header{Command: linkDead, Version: 1}, Data: p}:
		default:
		}
	}
}

// Conn is a generic netlink socket.
type Conn struct {
	kernel *Kernel
	inbox  chan genetlink.Message
	done   chan struct{}
	close  sync.Once
}

// GetFamily knows "nbd".
func (c *Conn) GetFamily(name string) (genetlink.Family, error) {
	if name != "nbd" || c.kernel.NoDriver {
		return genetlink.Family{}, &netlink.OpError{Op: "receive", Err: os.NewSyscallError("recvmsg", syscall.ENOENT)}
	}
	return genetlink.Family{
		ID: familyID, Version: 1, Name: name, Groups: []genetlink.MulticastGroup{{ID: groupID, Name: "nbd_mc_group"}},
	}, nil
}

// JoinGroup has Receive return what the group is told.
func (c *Conn) JoinGroup(group uint32) error {
	if group != groupID {
		return syscall.EINVAL
	}
	c.kernel.mu.Lock()
	defer c.kernel.mu.Unlock()
	c.kernel.members[c] = struct{}{}
	return nil
}

// Receive waits for a message to the group.
func (c *Conn) Receive() ([]genetlink.Message, []netlink.Message, error) {
	select {
	case m := <-c.inbox:
		return []genetlink.Message{m}, nil, nil
	case <-c.done:
		return nil, nil, &netlink.OpError{Op: "receive", Err: os.NewSyscallError("recvmsg", syscall.EBADF)} // as a real one
	}
}

// Close ends Receive.
func (c *Conn) Close() error {
	c.close.Do(func() {
		close(c.done)
		c.kernel.mu.Lock()
		defer c.kernel.mu.Unlock()
		delete(c.kernel.members, c)
	})
	return nil
}

// Execute runs one command.
func (c *Conn) Execute(m genetlink.Message, family uint16, flags netlink.HeaderFlags) ([]genetlink.Message, error) {
	if family != familyID || flags&netlink.Request == 0 {
		return nil, errors.New("kerneltest: not a request to the nbd family")
	}
	a, err := parse(m.Data)
	if err != nil {
		return nil, err
	}
	// The real one sends an acknowledgement after its answer, which the next command would read.
	if answers := m.Header.Command == connect || m.Header.Command == status; answers == (flags&netlink.Acknowledge != 0) {
		return nil, errors.New("kerneltest: either an answer or an acknowledgement")
	}
	reply, errno := c.kernel.run(m.Header.Command, a)
	if errno != 0 {
		return nil, &netlink.OpError{Op: "receive", Err: os.NewSyscallError("recvmsg", errno)}
	}
	return []genetlink.Message{{Header: m.Header, Data: reply}}, nil
}

func (k *Kernel) run(command uint8, a *attributes) ([]byte, syscall.Errno) {
	if k.Unprivileged && command != status {
		return nil, syscall.EPERM
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.devices[a.index]
	switch command {
	case connect:
		if d != nil {
			return nil, syscall.EBUSY
		}
		if a.settings.Size == 0 || len(a.sockets) == 0 {
			return nil, syscall.EINVAL
		}
		d = newDevice(k, a)
		k.devices[a.index] = d
		k.show(a.index, d)
		return nil, 0
	case reconfigure:
		if d == nil || d.settings.Identifier != a.settings.Identifier {
			return nil, syscall.EINVAL
		}
		d.reconfigure(a)
		k.show(a.index, d)
		return nil, 0
	case disconnect:
		if d != nil {
			delete(k.devices, a.index)
			os.RemoveAll(k.path(a.index))
			d.disconnect()
		}
		return nil, 0
	case status:
		return statusReply(a.index, d != nil), 0
	}
	return nil, syscall.EOPNOTSUPP
}

func (k *Kernel) path(index int) string {
	return filepath.Join(k.Root, "sys/block/nbd"+strconv.Itoa(index))
}

func (k *Kernel) show(index int, d *device) {
	s := d.snapshot()
	for name, text := range map[string]string{
		"backend": s.Identifier + "\n", "size": strconv.FormatUint(s.Size/512, 10) + "\n",
	} {
		if err := os.MkdirAll(k.path(index), 0o700); err != nil {
			panic(err)
		}
		if err := os.WriteFile(filepath.Join(k.path(index), name), []byte(text), 0o600); err != nil {
			panic(err)
		}
	}
}
