// Command wire is a cable in user space between two network interfaces, with delay, loss and a limit of speed: for
// kernels without netem.
//
//	host a: va ═══ wa │ wire │ wb ═══ vb: host b
//
// It reads every Ethernet frame that arrives at one interface and writes it to the other, both ways, by packet sockets.
// The usual place is a namespace of its own between two hosts (veth pairs); it needs CAP_NET_RAW there.
//
//	ip netns exec middle wire -delay 15ms -loss 0.001 -rate 100mbit wa wb
//
// What it does to a frame: it waits for those before it (rate; the queue is bounded, what does not fit is lost, as in a
// router), then travels for the delay, and may be lost. All of it can be changed while it runs, by the same words on
// standard input, one to a line: "delay 40ms", "loss 0.01", "rate 10kbit", "queue 256KiB", "rate 0" (no limit); and
// "cut a>b", "cut b>a", "cut both" loses everything one way or both, "cut none" ends that. An option holds for each
// direction by itself, so that a round trip takes twice the delay.
//
// The sockets carry offload with the frames (PACKET_VNET_HDR): frames may be up to 64 KiB long and without checksums, as
// the hosts hand them to a card, and that makes the cable fast. For loss like that of a real link, frame by frame, tell the
// hosts' interfaces to send single packets: ip link set va gso_max_segs 1.
//
// cable.go decides when a frame arrives, without clock or socket; main.go moves the frames.
package main
