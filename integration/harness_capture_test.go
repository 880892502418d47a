package integration

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// captured is what was seen on a wire.
type captured struct {
	TCP      int // packets
	Other    int // IP packets that are not TCP
	Flows    map[string]int
	PortMark int // TCP packets that begin with a frame of the data port in the clear
	TLS      int // TCP packets that begin with a record of TLS application data
}

const etherTypeAll = 0x0300 // ETH_P_ALL in network order

// capturePackets reads what passes an interface of this process's network.
func capturePackets(iface string, within time.Duration) (*captured, error) {
	i, err := net.InterfaceByName(iface)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // with a protocol it would hear all interfaces until it is bound
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: etherTypeAll, Ifindex: i.Index}); err != nil {
		return nil, fmt.Errorf("bind to %s: %w", iface, err)
	}
	wait := unix.NsecToTimeval(int64(20 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return nil, err
	}
	c := &captured{Flows: map[string]int{}}
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(within); time.Now().Before(end); {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		c.note(buf[:n])
	}
	return c, nil
}

// note takes an Ethernet frame.
func (c *captured) note(p []byte) {
	if len(p) < 14+20 || binary.BigEndian.Uint16(p[12:]) != 0x0800 {
		return // ARP, IPv6's talk with its neighbours
	}
	ip := p[14:]
	head, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if ip[9] != 6 {
		c.Other++
		return
	}
	if total == 0 || total > len(ip) { // segmentation is left to the interface
		total = len(ip)
	}
	if head+20 > total {
		return
	}
	tcp := ip[head:total]
	c.TCP++
	c.Flows[fmt.Sprintf("%s:%d > %s:%d", net.IP(ip[12:16]), binary.BigEndian.Uint16(tcp), net.IP(ip[16:20]), binary.BigEndian.Uint16(tcp[2:]))]++
	body := tcp[min(int(tcp[12]>>4)*4, len(tcp)):]
	switch {
	case bytes.HasPrefix(body, []byte("MDP1")):
		c.PortMark++
	case bytes.HasPrefix(body, []byte{0x17, 3, 3}):
		c.TLS++
	}
}
