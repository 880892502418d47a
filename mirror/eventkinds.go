package mirror

import (
	"maps"
	"slices"
)

// eventMeanings has all kinds of events, and what each says.
var eventMeanings = map[string]string{
	"started":           "this host began as a secondary",
	"serving":           "this host serves the device: it is the primary",
	"promoted":          "this host was promoted",
	"handover":          "a planned promotion: how far it is, on both hosts",
	"follower-new":      "a host follows that is not configured here",
	"fenced":            "a higher generation was met: this host serves no more",
	"parted":            "where this fenced host's history parts from the newer one, and what only this host has",
	"exported":          "what only this host has was written to a file",
	"demoted":           "the volume of this old primary follows the new one from now on",
	"fetched-back":      "what the end of this log had lost came back from a follower",
	"generation":        "a new minor generation, after an unclean end",
	"alone":             "no follower answered a starting source",
	"recovered":         "a torn tail was cut from the log at the start",
	"device-differs":    "at the start, some of what was last written to the device was not there",
	"failed":            "a disk, the start or a move of the flow failed",
	"state":             "the state changed, see explain",
	stateDamaged:        "the log has rotted where it was promised",
	"repaired":          "what had rotted came from the other side",
	eventAlarm:          "there is an alarm that was not there before",
	eventAlarmOver:      "there is no alarm of this name any more",
	"vote":              "this host gave its word for a promotion: no older generation is taken any more",
	"auto-promote":      "a target promoted itself, or did not, and why",
	"members":           "the list of members could not be kept, or was changed",
	"lease":             "the arbiter's lease was got, or is not held",
	"switching":         "the data flow moves to another target",
	"switched":          "another target is the active one",
	"resynced":          "a resync is complete; on a source with what was looked at and sent",
	"resync-held":       "on a target: a resync cannot be built",
	"refused":           "on a target: a source was refused",
	"source":            "on a target: a source feeds it",
	"source-lost":       "on a target: the source is not connected any more",
	"mode":              "the mode was changed",
	"bandwidth":         "the limit of what is sent was changed",
	"keys":              "keys were taken anew",
	"listen":            "an address to be reached at came or went",
	"resized":           "the device has another size",
	"device-grown":      "the backing device has more bytes than are mirrored",
	"log-resized":       "the log has another size",
	"checkpoint":        "a checkpoint was made",
	"verify-started":    "a verify began",
	"verify-difference": "a verify found a difference",
	"verify-done":       "a verify has compared all",
	"verify-stopped":    "a verify was stopped by order",
	"verify-failed":     "a verify ended with an error",
	"scrub-done":        "a scrub has read the log",
	"scrub-rot":         "a scrub found rot",
	"scrub-not-mended":  "which nobody could mend",
	"mended":            "which was mended from the other side",
	"went-back":         "promoted at a point of the past: what came after it was exported",
	"drill-started":     "a drill shows a point in time",
	"drill-ended":       "its scratch is gone",

	"follower-" + string(FollowerIdle):       "a follower is not used any more",
	"follower-" + string(FollowerConnecting): "a follower is dialled",
	"follower-" + string(FollowerHandshake):  "a follower is there; both compare what they have",
	"follower-" + string(FollowerResync):     "a resync of a follower begins",
	"follower-" + string(FollowerCatchUp):    "a follower reads what it missed",
	"follower-" + string(FollowerStreaming):  "a follower is in sync",
	"follower-" + string(FollowerDown):       "a follower is down",
	"follower-" + string(FollowerRefused):    "a follower has refused, or was refused",
	"follower-" + string(FollowerSuspended):  "a follower is suspended",

	string(portPathUp):        "a path carries data",
	string(portPathSuspect):   "a path fell silent",
	string(portPathDown):      "a path was lost",
	string(portPathStandby):   "a path is well and stands by",
	string(portPathDraining):  "a path is being removed",
	string(portUnreachable):   "a target gives no sign of life on any path",
	string(portPeerRestarted): "the agent of another host was restarted",
	string(portPeerRefused):   "another host was refused, or refused this one",
	string(portSuspended):     "the data flow was stopped by order",
	string(portResumed):       "and goes on",
	string(portFenced):        "a peer has seen a higher generation",
}

// EventKinds lists the kinds of events, sorted.
func EventKinds() []string { return slices.Sorted(maps.Keys(eventMeanings)) }

// EventMeaning says what an event of a kind tells, "" when there is no such kind.
func EventMeaning(kind string) string { return eventMeanings[kind] }
