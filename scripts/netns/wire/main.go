package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	vnetHeaderBytes = 10        // struct virtio_net_hdr, in front of every frame
	maxFrameBytes   = 80 << 10  // above the longest a kernel hands over
	socketBytes     = 16 << 20  // what may wait in a socket when this program does not get to run
	pendingFrames   = 256 << 10 // on their way at once; what comes above that is lost
	settleDelay     = time.Microsecond * 50
)

// end is one interface.
type end struct {
	name string
	fd   int
}

func open(name string) (end, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return end{}, fmt.Errorf("interface %s: %w", name, err)
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8                   // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // with a protocol it would hear all interfaces until it is bound
	if err != nil {
		return end{}, fmt.Errorf("packet socket: %w: it needs CAP_NET_RAW (root)", err)
	}
	set := func(level, option, value int) {
		if e := unix.SetsockoptInt(fd, level, option, value); e != nil && err == nil {
			err = fmt.Errorf("socket option %d: %w", option, e)
		}
	}
	set(unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) // or it would carry back what it wrote
	set(unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	set(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBytes)
	set(unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBytes)
	if err == nil {
		err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(i.Index), Type: unix.PACKET_MR_PROMISC})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	}
	if err != nil {
		_ = unix.Close(fd)
		return end{}, fmt.Errorf("interface %s: %w", name, err)
	}
	return end{name: name, fd: fd}, nil
}

type frame struct {
	arrives time.Time
	b       []byte // with its vnet header
}

// wire is both directions; mu guards them.
type wire struct {
	mu     sync.Mutex
	ab, ba cable
}

// carry moves frames from one end to the other for ever.
func (w *wire) carry(from, to end, c *cable) {
	pending := make(chan frame, pendingFrames)
	go func() {
		for f := range pending {
			if early := time.Until(f.arrives); early > settleDelay {
				time.Sleep(early)
			}
			_, _ = unix.Write(to.fd, f.b) // an interface that is down loses it, as a pulled cable does
		}
	}()
	b := make([]byte, maxFrameBytes)
	for {
		n, err := unix.Read(from.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENETDOWN):
			time.Sleep(10 * time.Millisecond) // it may come up again
			continue
		case err != nil:
			fmt.Fprintf(os.Stderr, "wire: read %s: %v\n", from.name, err)
			os.Exit(1)
		case n <= vnetHeaderBytes:
			continue
		}
		w.mu.Lock()
		arrives, ok := c.carry(time.Now(), n-vnetHeaderBytes, rand.Float64())
		w.mu.Unlock()
		if ok {
			select {
			case pending <- frame{arrives, append([]byte(nil), b[:n]...)}:
			default:
			}
		}
	}
}

func (w *wire) set(word, value string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return set(&w.ab, &w.ba, word, value)
}

func run() error {
	w := &wire{ab: cable{queue: defaultQueue}, ba: cable{queue: defaultQueue}}
	for _, o := range [][2]string{
		{"delay", "one way, like 15ms"},
		{"loss", "part of the frames that is lost, like 0.001"},
		{"rate", "of each direction, like 100mbit (bits) or 10kbps (bytes)"},
		{"queue", "what waits for the rate at most (default 1MiB)"},
		{"cut", "none, a>b, b>a or both"},
	} {
		flag.Func(o[0], o[1], func(v string) error { return w.set(o[0], v) })
	}
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: wire [options] INTERFACE_A INTERFACE_B\nThe options may also come as lines on standard input while it runs: \"delay 40ms\".")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	a, err := open(flag.Arg(0))
	if err != nil {
		return err
	}
	b, err := open(flag.Arg(1))
	if err != nil {
		return err
	}
	go w.carry(a, b, &w.ab)
	go w.carry(b, a, &w.ba)
	fmt.Printf("wire: %s and %s are connected\n", a.name, b.name)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		word, value, _ := strings.Cut(strings.TrimSpace(in.Text()), " ")
		if word == "" {
			continue
		}
		if err := w.set(word, strings.TrimSpace(value)); err != nil {
			fmt.Fprintln(os.Stderr, "wire:", err)
		}
	}
	select {} // the end of standard input is not the end of the cable
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "wire:", err)
		os.Exit(1)
	}
}
