package kerneltest

import (
	"time"

	"github.com/mdlayher/netlink"
)

// Numbers of include/uapi/linux/nbd-netlink.h, written down a second time on purpose.
const (
	connect     = 1
	disconnect  = 2
	reconfigure = 3
	linkDead    = 4
	status      = 5

	attrIndex = 1
)

// attributes are those of one command.
type attributes struct {
	index    int
	settings Settings
	sockets  []int
}

func parse(p []byte) (*attributes, error) {
	d, err := netlink.NewAttributeDecoder(p)
	if err != nil {
		return nil, err
	}
	a := &attributes{index: -1}
	s := &a.settings
	for d.Next() {
		switch d.Type() {
		case attrIndex:
			a.index = int(d.Uint32())
		case 2:
			s.Size = d.Uint64()
		case 3:
			s.BlockSize = d.Uint64()
		case 4:
			s.Timeout = time.Duration(d.Uint64()) * time.Second
		case 5:
			s.Flags = d.Uint64()
		case 7:
			d.Nested(a.parseSockets)
		case 8:
			s.DeadConnTimeout = time.Duration(d.Uint64()) * time.Second
		case 10:
			s.Identifier = d.String()
		}
	}
	return a, d.Err()
}

func (a *attributes) parseSockets(list *netlink.AttributeDecoder) error {
	for list.Next() {
		list.Nested(func(item *netlink.AttributeDecoder) error {
			for item.Next() {
				if item.Type() == 1 {
					a.sockets = append(a.sockets, int(item.Uint32()))
				}
			}
			return nil
		})
	}
	return nil
}

func statusReply(index int, connected bool) []byte {
	e := netlink.NewAttributeEncoder()
	e.Nested(9, func(list *netlink.AttributeEncoder) error {
		list.Nested(1, func(item *netlink.AttributeEncoder) error {
			item.Uint32(1, uint32(index))
			up := uint8(0)
			if connected {
				up = 1
			}
			item.Uint8(2, up)
			return nil
		})
		return nil
	})
	p, err := e.Encode()
	if err != nil {
		panic(err)
	}
	return p
}
