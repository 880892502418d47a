package control

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// metric is one name that is scraped.
type metric struct {
	name   string
	help   string
	labels []string
	desc   *prometheus.Desc
}

// metrics are all that a collector may give, in the order in which they were named.
var metrics []*metric

// named makes a metric of the mirror. Every one has the label mirror, and a unit at the end of its name where it has one.
func named(name, help string, labels ...string) *metric {
	m := &metric{name: "mirror_agent_" + name, help: help, labels: append([]string{"mirror"}, labels...)}
	m.desc = prometheus.NewDesc(m.name, m.help, m.labels, nil)
	metrics = append(metrics, m)
	return m
}

// MetricNames lists the names of the mirror's own metrics, sorted.
func MetricNames() []string {
	var names []string
	for _, m := range metrics {
		names = append(names, m.name)
	}
	slices.Sort(names)
	return names
}

// The label follower is a follower's first address, as status has it; peer is that, or the source's name on a target.
var (
	buildInfo = named("build_info", "Constant 1, by the version of the agent and of Go.", "version", "goversion")

	role            = named("role", "1 for the role that this host has, 0 for the other one.", "role")
	state           = named("state", "1 for the state that the mirror is in on this host, 0 for all others.", "state")
	stateSince      = named("state_since_timestamp_seconds", "When the mirror came into its state.")
	mode            = named("mode", "1 for the mode: what writes and flushes wait for.", "mode")
	generationMajor = named("generation_major", "Major number of the generation: how many promotions there have been.")
	generationMinor = named("generation_minor", "Minor number of the generation: unclean ends of a primary since the last promotion.")
	alarms          = named("alarms", "How many alarms there are.")
	alarm           = named("alarm", "How many alarms of this name there are.", "alarm")
	deviceSize      = named("device_size_bytes", "Size of the mirrored device.")

	logSize          = named("log_size_bytes", "Size of the log's ring.")
	logUsed          = named("log_used_bytes", "Bytes of the ring between tail and head: what is needed, and history.")
	logPinned        = named("log_pinned_bytes", "Bytes of the ring that the device or a connected follower has not got yet.")
	logFull          = named("log_until_full_seconds", "How long the ring lasts at the present rate if nothing more is applied or read; +Inf while nothing is written.")
	logRate          = named("log_write_bytes_per_second", "How fast the log grows, averaged over some seconds.")
	logPosition      = named("log_position_bytes", "LSN of head, durable, committed, applied and tail; a difference of two is a number of bytes.", "point")
	logRecords       = named("log_records_total", "Records appended since the start.")
	logRecordBytes   = named("log_record_bytes_total", "Bytes of these records.")
	logAppends       = named("log_appends_total", "Calls that appended records.")
	logAnchors       = named("log_anchors_total", "Anchors written.")
	logAppendTime    = named("log_append_seconds", "Time of an append, waiting for its group included.")
	logSyncTime      = named("log_fdatasync_seconds", "Time of one fdatasync of the log.")
	logGroupRecords  = named("log_group_records", "Records that went to the file in one write.")
	logGroupBytes    = named("log_group_bytes", "Bytes that went to the file in one write.")
	applierLag       = named("applier_lag_bytes", "Bytes of the log that the backing device has not got yet.")
	applierLagTime   = named("applier_lag_seconds", "Age of the oldest record that the backing device has not got yet.")
	overlayBytes     = named("overlay_bytes", "Bytes of the device that are newer in the log.")
	overlayExtents   = named("overlay_extents", "Extents of the device that are newer in the log.")
	overlayLimit     = named("overlay_extents_limit", "Extents that there may be, as the memory allows: above three eighths of it nothing is retained, above half writers are slowed.")
	overlayAbsorbed  = named("overlay_absorbed_bytes_total", "Bytes that never had to be written to the device, because they were overwritten first.")
	writersWaiting   = named("writers_waiting", "Writers that wait in line: for room in the log, or for their turn while writers are slowed.")
	nbdConnections   = named("nbd_connections", "NBD clients connected now.")
	nbdRequests      = named("nbd_requests_total", "NBD requests done without an error.", "command")
	nbdErrors        = named("nbd_request_errors_total", "NBD requests answered with an error.")
	nbdReadBytes     = named("nbd_read_bytes_total", "Bytes read by NBD clients.")
	nbdWrittenBytes  = named("nbd_written_bytes_total", "Bytes written by NBD clients.")
	nbdTime          = named("nbd_request_seconds", "Time of an NBD request from its receipt until its answer is ready; fua: a write that has to be durable.", "command")
	rpo              = named("rpo_seconds", "Age of the oldest write that is not durable at the active target; absent while there is none, or nothing is there yet.")
	followerState    = named("follower_state", "1 for the state that the follower is in, 0 for all others.", "follower", "kind", "state")
	followerActive   = named("follower_active", "1 for the follower whose word counts for the mode.", "follower", "kind")
	followerRPO      = named("follower_rpo_seconds", "Age of the oldest write that is not durable there; absent while nothing is there yet.", "follower", "kind")
	followerLag      = named("follower_lag_bytes", "Bytes of the log that are not durable there.", "follower", "kind")
	followerDirty    = named("follower_dirty_bytes", "Bytes of the device that have to be copied there, beyond what the log has.", "follower", "kind")
	followerReceived = named("follower_received_position_bytes", "LSN up to which the follower has received the log.", "follower", "kind")
	followerDurable  = named("follower_durable_position_bytes", "LSN up to which the log is durable there.", "follower", "kind")
	resyncDone       = named("resync_done_bytes", "Bytes of the running resync that are done; absent while there is none.", "peer")
	resyncTotal      = named("resync_total_bytes", "Bytes of the running resync in all; absent while there is none.", "peer")
	resyncSent       = named("resync_sent_bytes", "Bytes of the running resync that had to be sent; absent while there is none.", "peer")
	resyncYields     = named("resync_yields_to_bytes_per_second", "What the running resync does in a second at most because applications are at work; absent while none are.", "peer")
	pathState        = named("path_state", "1 for the state that the path is in, 0 for all others.", "peer", "path", "remote", "state")
	pathRTT          = named("path_rtt_seconds", "Smoothed round-trip time.", "peer", "path", "remote")
	pathRate         = named("path_delivery_bytes_per_second", "Delivery rate, as measured when there was last something to deliver.", "peer", "path", "remote")
	pathSent         = named("path_sent_bytes_total", "Bytes sent over the path, over reconnections.", "peer", "path", "remote")
	pathReceived     = named("path_received_bytes_total", "Bytes received over the path, over reconnections.", "peer", "path", "remote")
	pathResent       = named("path_resent_frames_total", "Frames that had been sent before, on another path or on this one.", "peer", "path", "remote")
	pathUnacked      = named("path_unacked_bytes", "Bytes sent and not acknowledged yet.", "peer", "path", "remote")
	sourceConnected  = named("source_connected", "On a target: 1 while a source is connected.", "peer")
	sourceLag        = named("source_lag_bytes", "On a target: bytes of the source's log that are not durable here.", "peer")
	messageBytes     = named("message_bytes_total", "Bytes of messages sent before packing, and as they went.", "form")
	bandwidthLimit   = named("bandwidth_limit_bytes_per_second", "Limit of what is sent to a follower; absent while there is none.")
	verifyState      = named("verify_state", "1 for the state of the verify that runs or ran last; absent before the first.", "state")
	verifyDone       = named("verify_done_bytes", "Up to where the last verify came.")
	verifyTotal      = named("verify_total_bytes", "Bytes that it has to compare.")
	verifyDifferent  = named("verify_different_bytes", "Bytes that it found to differ.")
	verifyRepaired   = named("verify_repaired_bytes", "Bytes of these that it repaired.")
	verifyEnd        = named("verify_end_timestamp_seconds", "When the last verify ended; absent while it runs.")
	scrubRunning     = named("scrub_running", "1 while the log is scrubbed.")
	scrubDone        = named("scrub_done_bytes", "Bytes of the log that the last scrub has read.")
	scrubFound       = named("scrub_found_places", "Places that the last scrub found to be rotten.")
	scrubMended      = named("scrub_mended_places", "Places of these that it mended from the other side.")
	hookRuns         = named("hook_runs_total", "Runs of a hook, by how they ended: done, failed, or killed, because it took too long.", "hook", "events", "result")
	hookMissed       = named("hook_missed_events_total", "Events that a hook did not get, because it was too slow.", "hook", "events")
	scrubEnd         = named("scrub_end_timestamp_seconds", "When the last scrub ended; absent before the first.")
)
