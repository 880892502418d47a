package mirror

import (
	"maps"
	"slices"
)

// Words say what a state means, what happens in it without the operator, and what can be done.
type Words struct {
	Means    string `json:"means"`
	ByItself string `json:"by_itself"` // what happens next if nobody does anything
	Next     string `json:"next"`      // "" where nothing needs to be done
}

// Subjects of Words.
const (
	SubjectMirror   = "mirror"   // Status.State
	SubjectRole     = "role"     // Status.Role
	SubjectFollower = "follower" // FollowerStatus.State
	SubjectPort     = "port"     // FollowerStatus.Port
	SubjectPath     = "path"     // PathStatus.State
)

// WordsFor explains a state of a subject; false: there is no such state.
func WordsFor(subject, state string) (Words, bool) {
	w, ok := words[subject][state]
	return w, ok
}

// StatesOf lists the states of a subject, sorted.
func StatesOf(subject string) []string { return slices.Sorted(maps.Keys(words[subject])) }

// passing are the states of a mirror that end by themselves soon, or there is an alarm: handover-stuck.
var passing = map[string]bool{"starting": true, stateHandingOver: true}

// alarmNames are all that an alarm may have.
var alarmNames = []string{
	"degraded", "fenced", "failed", stateDamaged, stateDeviceFull, stateDeviceError, stateResyncHeld,
	"device-read-error", "log-full", "log-held", "log-rot", "overlay-full", "path-down", "redundancy-reduced", "target-device-error", "target-device-full", "tracking-lost", "verify-differs",
	"applier-stuck", "catch-up-stuck", "connecting-long", "handover-stuck", "resync-stuck", "verify-stuck", "writers-wait",
}

// AlarmNames lists the names that an alarm may have, sorted.
func AlarmNames() []string {
	return slices.Sorted(slices.Values(alarmNames))
}

// words has an entry for every state there is: a test walks over the state machines and over what this package says.
var words = map[string]map[string]Words{
	SubjectRole: {
		"primary":   {"applications write here; every write goes on to the followers", "it stays a primary over restarts, until a higher generation is met", ""},
		"secondary": {"a copy that a source feeds; nobody writes here", "it follows its source, and can be promoted", ""},
	},
	SubjectMirror: {
		"in sync":        {"the active target has everything that its mode promises", "every write goes on to the target", ""},
		"standalone":     {"a source without a target: one copy of the data", "nothing", "restart this source with --target HOST:PORT"},
		"frozen":         {"this primary answers no write and no FLUSH: it does not hold the arbiter's lease", "it goes on as soon as the lease is renewed; nothing that waits is lost", "look at the arbiter and at the way to it: explain says which"},
		"handing over":   {"the lead goes from this host to the other one, or comes from it; nobody serves for a moment", "either side has the lead within the time given; when that passes before the target is level, the source takes its front back up", "wait"},
		"handed over":    {"this host gave the lead away, and nobody feeds it yet", "it follows as soon as the other host leads and feeds it", "mirror-agent promote on the other host; or here, when that one is not coming back: nothing is lost either way"},
		"starting":       {"the source asks its followers for a higher generation before it serves", "the front opens when one has answered, or after --start-wait (unless --alone refuse)", "start the target, or wait"},
		"resync":         {"a target is being copied; the one before stays promotable until that is complete", "the copy goes on, also after an interruption, and ends by itself", "wait; status --watch shows how long"},
		"catch-up":       {"the active target reads from the log what it missed", "it is in sync when it has reached the head", "wait"},
		"degraded":       {"the active target cannot be reached or does not follow", "it is dialled again without end; what it misses is kept in the log, then in a bitmap; with --switch auto a backup takes over", "look at that host and its links, or mirror-agent switch backup"},
		"suspended":      {"the operator has stopped the data flow", "nothing; what the targets miss is kept in the log, then in a bitmap", "mirror-agent resume"},
		"streaming":      {"a source feeds this copy, and it is promotable", "every write of the source arrives here", ""},
		"waiting":        {"no source is connected; this copy is consistent and as old as the last word of it", "a source that comes back goes on where it was", "start the source; when it is lost, mirror-agent promote"},
		"empty":          {"this copy has never been in sync and cannot be promoted", "a source that names this host copies everything", "start the source with this host as its --target"},
		"left":           {"the source feeds another target now; what is here is old", "it is resynced when the source comes back to it", "mirror-agent switch primary on the source; do not promote this host"},
		"fenced":         {"another host was promoted meanwhile; this one must not write any more", "it follows the other side by itself where it has nothing of its own; it never serves again by itself", "applications use the other side; mirror-agent demote --dry-run, then mirror-agent demote"},
		"rejoining":      {"an old primary that was given up; what is here is its own old state", "the new primary copies what either side has changed, as soon as it reaches this host", "name this host to the new primary (--target, --backup) when it does not"},
		"failed":         {"a disk has failed, or the start was refused: the volume has stopped", "nothing; a target leaves the network, so that its source turns to a backup", "mend what the reason names, then restart the agent"},
		stateDamaged:     {"a record that was promised durable has rotted", "it is fetched from the other side when that connects; nothing is cut", "start the other side"},
		stateDeviceFull:  {"the backing device is sparse and its filesystem is full", "the log takes the writes until it is full, then writers wait; it is tried again all the time", "free space on the device's filesystem"},
		stateDeviceError: {"a write to the backing device fails", "it is tried again five times within seconds, then the volume stops", "look at the disk (dmesg, smartctl)"},
		stateResyncHeld:  {"a resync cannot be built: no space for the staging file, or its disk fails", "it is tried again, at most a minute later; the last consistent state stays promotable", "free space beside the journal"},
	},
	SubjectFollower: {
		string(FollowerIdle):       {"a cold backup that is not in use", "nothing before a switch-over", ""},
		string(FollowerConnecting): {"it is dialled", "every path is tried again after pauses of up to some seconds", "if it lasts: is the agent there started, does a firewall let its port through? mirror-agent doctor"},
		string(FollowerHandshake):  {"a session is up; both sides compare what they have", "it streams, or is resynced, within moments", ""},
		string(FollowerResync):     {"blocks are copied to it", "it catches up and counts again when the copy is complete", "wait"},
		string(FollowerCatchUp):    {"it reads from the log what it missed", "it streams when it has reached the head", "wait"},
		string(FollowerStreaming):  {"it gets every write", "it goes on", ""},
		string(FollowerDown):       {"there is no sign of life on any path", "it is dialled again without end", "look at that host and its links; mirror-agent doctor"},
		string(FollowerRefused):    {"one side has refused the other; the reason says why", "it is tried again with the next session", "do what the reason says"},
		string(FollowerSuspended):  {"the operator has stopped the data flow", "nothing", "mirror-agent resume"},
	},
	SubjectPort: {
		"opening":     {"the first path to the host is not up yet", "all addresses are dialled", ""},
		"connected":   {"every path to the host is up", "the paths share the data", ""},
		"degraded":    {"some path to the host is lost; the others carry the data", "it is dialled again without end", "mend the link, or mirror-agent path remove"},
		"unreachable": {"no path to the host has given a sign of life for --unreachable-after", "it is dialled again without end", "look at that host and its links"},
		"switching":   {"the port turns to another host", "it is connected, or unreachable, within moments", ""},
		"suspended":   {"messages are held back by the operator's order; paths stay up", "nothing", "mirror-agent resume"},
		"closed":      {"the connection was given up", "nothing", ""},
		"fenced":      {"a peer has seen a higher generation: nothing is sent any more", "nothing", "mirror-agent demote, see fenced"},
	},
	SubjectPath: {
		"idle":           {"not in use", "nothing", ""},
		"dialing":        {"a TCP connection is being made", "it ends within seconds, well or not", ""},
		"authenticating": {"both sides prove their keys", "it ends within seconds, well or not", ""},
		"active":         {"carries data", "it goes on", ""},
		"suspect":        {"fell silent; the other paths carry its data", "it is active again with the next sign of life, else down", ""},
		"down":           {"was lost", "it is dialled again", "look at the link"},
		"backoff":        {"waits before it is dialled again", "the pause ends by itself, at most some seconds", ""},
		"standby":        {"well, without data: enough others are active", "it takes over in the moment one of them is lost", ""},
		"reserved":       {"lost; its place is kept", "it is dialled again", "look at the link"},
		"draining":       {"is being removed; it gets nothing more", "it is closed when all on it is acknowledged", ""},
	},
}
