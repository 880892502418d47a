package nbd

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// What the kernel's driver says by generic netlink; numbers are those of include/uapi/linux/nbd-netlink.h.
const (
	kernelFamily  = "nbd"
	kernelGroup   = "nbd_mc_group"
	kernelVersion = 1

	kernelConnect     = 1
	kernelDisconnect  = 2
	kernelReconfigure = 3
	kernelLinkDead    = 4
	kernelStatus      = 5

	attrIndex           = 1
	attrSizeBytes       = 2
	attrBlockSizeBytes  = 3
	attrTimeout         = 4 // seconds
	attrServerFlags     = 5
	attrSockets         = 7
	attrDeadConnTimeout = 8 // seconds
	attrDeviceList      = 9
	attrIdentifier      = 10

	attrSocketItem      = 1
	attrSocketFD        = 1
	attrDeviceItem      = 1
	attrDeviceIndex     = 1
	attrDeviceConnected = 2
)

// Errors of the kernel's driver.
var (
	ErrNoDriver     = errors.New("the kernel has no nbd driver")
	ErrNoPermission = errors.New("the kernel lets only root (CAP_SYS_ADMIN) attach and detach")
	ErrDeviceInUse  = errors.New("in use")
	ErrDetached     = errors.New("the device was detached")
)

// Transport is what Kernel needs of a generic netlink socket; *genetlink.Conn is one.
type Transport interface {
	GetFamily(name string) (genetlink.Family, error)
	JoinGroup(group uint32) error
	Execute(m genetlink.Message, family uint16, flags netlink.HeaderFlags) ([]genetlink.Message, error)
	Receive() ([]genetlink.Message, []netlink.Message, error)
	Close() error // ends a Receive that waits
}

// Kernel is the kernel's NBD driver. Any goroutine may use it.
type Kernel struct {
	dial   func() (Transport, error)
	root   string // of /sys and /proc
	family genetlink.Family

	mu       sync.Mutex // one command at a time
	commands Transport
}

// OpenKernel finds the driver: ErrNoDriver when the module is not there.
func OpenKernel() (*Kernel, error) {
	return NewKernel(func() (Transport, error) { return genetlink.Dial(nil) }, "/")
}

// NewKernel is OpenKernel with the sockets that dial returns and /sys and /proc looked for below root.
func NewKernel(dial func() (Transport, error), root string) (*Kernel, error) {
	t, err := dial()
	if err != nil {
		return nil, fmt.Errorf("%w that generic netlink could reach: %w", ErrNoDriver, err)
	}
	f, err := t.GetFamily(kernelFamily)
	if err != nil {
		t.Close()
		if errors.Is(err, os.ErrNotExist) {
			return nil, ErrNoDriver
		}
		return nil, fmt.Errorf("look for the kernel's nbd driver: %w", err)
	}
	return &Kernel{dial: dial, root: root, family: f, commands: t}, nil
}

// Close closes the netlink socket. What is attached stays attached.
func (k *Kernel) Close() error { return k.commands.Close() }

// kernelDevice is what CONNECT and RECONFIGURE say of a device; 0 is not said.
type kernelDevice struct {
	index                    int
	size, blockSize          uint64 // bytes
	timeout, deadConnTimeout time.Duration
	flags                    uint16
	identifier               string
	sockets                  []uintptr
}

func (d *kernelDevice) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(d.index))
	set := func(attr uint16, v uint64) {
		if v != 0 {
			e.Uint64(attr, v)
		}
	}
	set(attrSizeBytes, d.size)
	set(attrBlockSizeBytes, d.blockSize)
	set(attrTimeout, wholeSeconds(d.timeout))
	set(attrDeadConnTimeout, wholeSeconds(d.deadConnTimeout))
	set(attrServerFlags, uint64(d.flags))
	if d.identifier != "" {
		e.String(attrIdentifier, d.identifier)
	}
	e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
		for _, fd := range d.sockets {
			list.Nested(attrSocketItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(attrSocketFD, uint32(fd))
				return nil
			})
		}
		return nil
	})
	return e.Encode()
}

func wholeSeconds(d time.Duration) uint64 { return uint64((d + time.Second - 1) / time.Second) }

func (k *Kernel) connect(d *kernelDevice) error {
	p, err := d.encode()
	if err != nil {
		return err
	}
	// It answers with a message of its own; an acknowledgement on top would be taken for the answer to the next command.
	_, err = k.execute(kernelConnect, netlink.Request, p)
	return err
}

// reconfigure gives the device new sockets in place of its dead ones, and another size. Sockets that are too many it does not take.
func (k *Kernel) reconfigure(d *kernelDevice) error {
	p, err := d.encode()
	if err != nil {
		return err
	}
	_, err = k.execute(kernelReconfigure, netlink.Request|netlink.Acknowledge, p)
	return err
}

func (k *Kernel) execute(command uint8, flags netlink.HeaderFlags, data []byte) ([]genetlink.Message, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m := genetlink.Message{Header: genetlink.Header{Command: command, Version: kernelVersion}, Data: data}
	reply, err := k.commands.Execute(m, k.family.ID, flags)
	switch {
	case errors.Is(err, syscall.EPERM):
		return nil, ErrNoPermission
	case errors.Is(err, syscall.EBUSY):
		return nil, ErrDeviceInUse
	}
	return reply, err
}

// Detach disconnects a device. The kernel does so also while it is mounted; see Users.
func (k *Kernel) Detach(index int) error {
	up, err := k.Attached(index)
	if err != nil {
		return err
	}
	if !up {
		return ErrDetached
	}
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(index))
	p, err := e.Encode()
	if err != nil {
		return err
	}
	_, err = k.execute(kernelDisconnect, netlink.Request|netlink.Acknowledge, p)
	return err
}

// Attached says whether the kernel has the device connected, alive or not.
func (k *Kernel) Attached(index int) (bool, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(index))
	p, err := e.Encode()
	if err != nil {
		return false, err
	}
	replies, err := k.execute(kernelStatus, netlink.Request, p)
	if err != nil {
		return false, fmt.Errorf("ask the kernel for the state of nbd%d: %w", index, err)
	}
	for _, m := range replies {
		d, err := netlink.NewAttributeDecoder(m.Data)
		if err != nil {
			return false, err
		}
		up := false
		for d.Next() {
			if d.Type() == attrDeviceList {
				d.Nested(func(list *netlink.AttributeDecoder) error { return findDevice(list, uint32(index), &up) })
			}
		}
		if err := d.Err(); err != nil || up {
			return up, err
		}
	}
	return false, nil
}

// findDevice looks through the answer to STATUS.
func findDevice(list *netlink.AttributeDecoder, index uint32, up *bool) error {
	for list.Next() {
		if list.Type() != attrDeviceItem {
			continue
		}
		list.Nested(func(item *netlink.AttributeDecoder) error {
			found, connected := false, false
			for item.Next() {
				switch item.Type() {
				case attrDeviceIndex:
					found = item.Uint32() == index
				case attrDeviceConnected:
					connected = item.Uint8() != 0
				}
			}
			*up = *up || found && connected
			return nil
		})
	}
	return nil
}

// identifier is who attached the device: the BACKEND_IDENTIFIER of its CONNECT, "" when it had none.
func (k *Kernel) identifier(index int) string {
	b, err := os.ReadFile(k.sysfs(index, "backend"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// size in bytes that the kernel's device has now; 0 when that cannot be read.
func (k *Kernel) size(index int) uint64 {
	b, err := os.ReadFile(k.sysfs(index, "size"))
	if err != nil {
		return 0
	}
	sectors, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 55)
	if err != nil {
		return 0
	}
	return sectors * 512
}

// blockSize is that of the device, as the kernel has it; the largest there is when it does not tell.
func (k *Kernel) blockSize(index int) uint64 {
	b, err := os.ReadFile(k.sysfs(index, "queue/logical_block_size"))
	if err != nil {
		return largestSector
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || n == 0 {
		return largestSector
	}
	return n
}

func (k *Kernel) sysfs(index int, file string) string {
	return filepath.Join(k.root, "sys/block", "nbd"+strconv.Itoa(index), file)
}

// Users says what uses the device or a partition of it and would lose its data if it went away: mount points, swap,
// devices on top of it (dm, md). Empty when there is none.
func (k *Kernel) Users(index int) []string {
	var users []string
	dev := "/dev/nbd" + strconv.Itoa(index)
	isOurs := func(source string) bool {
		rest, ok := strings.CutPrefix(source, dev)
		return ok && (rest == "" || rest[0] == 'p')
	}
	k.lines("proc/self/mountinfo", func(f []string) {
		// id parent major:minor root mountpoint options… - type source options
		for i := 6; i+2 < len(f); i++ {
			if f[i] == "-" && isOurs(f[i+2]) {
				users = append(users, "mounted at "+f[4])
				return
			}
		}
	})
	k.lines("proc/swaps", func(f []string) {
		if len(f) > 0 && isOurs(f[0]) {
			users = append(users, "used as swap")
		}
	})
	over, _ := os.ReadDir(k.sysfs(index, "holders")) // not there: none
	for _, e := range over {
		users = append(users, "used by "+e.Name())
	}
	return users
}

func (k *Kernel) lines(file string, each func(fields []string)) {
	f, err := os.Open(filepath.Join(k.root, file))
	if err != nil {
		return // no /proc: nothing that could be told from it
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		each(strings.Fields(s.Text()))
	}
}

// deaths opens a socket that hears of dead links.
func (k *Kernel) deaths() (Transport, error) {
	for _, g := range k.family.Groups {
		if g.Name != kernelGroup {
			continue
		}
		t, err := k.dial()
		if err != nil {
			return nil, err
		}
		if err := t.JoinGroup(g.ID); err != nil {
			t.Close()
			return nil, err
		}
		return t, nil
	}
	return nil, fmt.Errorf("the kernel's nbd driver has no group %s: it is too old", kernelGroup)
}

// linkDied says whether a message tells of a dead link of the device.
func linkDied(m genetlink.Message, index int) bool {
	if m.Header.Command != kernelLinkDead {
		return false
	}
	d, err := netlink.NewAttributeDecoder(m.Data)
	if err != nil {
		return false
	}
	for d.Next() {
		if d.Type() == attrIndex && d.Uint32() == uint32(index) {
			return true
		}
	}
	return false
}
