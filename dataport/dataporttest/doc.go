// Package dataporttest has links that a test can damage.
//
// Proxy is a TCP link on 127.0.0.1 between real nodes: reset, silent drop of one or both directions, stall, delay, rate.
//
// Net is a network in memory, for Config.Dial and Config.ListenFunc. It has no sockets, and no goroutine or clock of its
// own: what happens is worked out when an end reads, writes or waits, so that a test in a testing/synctest bubble runs
// on the bubble's time, exactly. Each listening address is one link with its own faults, by direction:
//
//	Cut         RST: both ends learn at once, what was under way is gone
//	Blackhole   silence: nobody is told, writes go on succeeding until the socket is full. A stream that lost bytes stays
//	            dead, as if a NAT had forgotten it, or, with Retransmit, TCP brings them after the hole has ended
//	Stall       nothing moves and nothing is lost: the process at the other end stands still
//	Delay, Rate with jitter; paths with different ones reorder each other's frames
//	FlipBit, Insert, Truncate, HalfClose: what no checksum of TCP's has caught
//	Refuse, SlowAccept: and a dial into a hole waits, as a SYN would
//
// What Net keeps of TCP: order within a stream; a bounded socket, full while nothing is read or acknowledged; a close
// with unread bytes, and a write to who has closed, are answered with a reset; retransmission backs off from rtoMin.
package dataporttest
