package mirror

import "fmt"

// handoverStep is where a planned promotion is: the lead goes from a source that lives to a target that has everything. Both
// sides as one state machine:
//
//	source                                                      target
//	  lead ◄──────────────────────────┐                           follow ◄─────────────────────────┐
//	   │ ask ◄──────────────────────── │ ───────────── "ask" ────  │ order                          │
//	  drain      the front closes;     │                          ask ── refused, back, late ───────┘
//	   │         who was let in is     │                           │
//	   │ drained answered              │                           │
//	  level      durable here up to    │ "back": why               │
//	   │         the head, then there  │                           │
//	   │ level                         │                           │
//	  demote ─── failed, lost, late: return ── opened ─┘           │
//	   │         (from drain, level and demote; the front opens)   │
//	   │ stored: this volume is a secondary, durably               │
//	  handed ───────────── "handed" ────────────────────────────► take    a new major generation, durable
//	   │ accepted, lost                                            │ begun
//	  follow ◄──────────── hello, records ──────────────────────  lead    the front opens
//
// declined (in handed): the target has given up before it was told, for good: the source takes the lead again, by a generation
// of its own (take). No other step back leads out of handed, since nobody but the target knows whether it began. For the same
// reason a target whose session is lost goes on asking until it is late: the source may have handed over, and says so again
// when it is back.
//
// What serves is lead alone, and at most one side is in it: a source leaves it before it asks its disk to say secondary, a target
// comes to it only by "handed", which is said after the disk has. Who is killed begins again in lead or follow, as its disk says:
// the disk says secondary from stored on, and primary from begun on.
type handoverStep string

// The steps.
const (
	handLead   handoverStep = "lead"
	handDrain  handoverStep = "drain"
	handLevel  handoverStep = "level"
	handDemote handoverStep = "demote"
	handReturn handoverStep = "return"
	handHanded handoverStep = "handed"
	handFollow handoverStep = "follow"
	handAsk    handoverStep = "ask"
	handTake   handoverStep = "take"
)

type handoverEvent string

const (
	handoverOrder    handoverEvent = "order"    // of the operator, at the target
	handoverAsked    handoverEvent = "asked"    // the target's word has come to the source
	handoverRefused  handoverEvent = "refused"  // the source's answer to that
	handoverDrained  handoverEvent = "drained"  // nobody is served any more, all were answered
	handoverLevel    handoverEvent = "level"    // the target is durable up to the head, and knows that the source is
	handoverStored   handoverEvent = "stored"   // the source's disk says secondary
	handoverFailed   handoverEvent = "failed"   // the step cannot be done
	handoverLost     handoverEvent = "lost"     // the other side cannot be reached
	handoverLate     handoverEvent = "late"     // the time that the operator gave is over
	handoverOpened   handoverEvent = "opened"   // the source's front is open again
	handoverTold     handoverEvent = "told"     // "handed" has come to the target
	handoverBack     handoverEvent = "back"     // the source says that it leads on
	handoverAccepted handoverEvent = "accepted" // the target's answer to "handed"
	handoverDeclined handoverEvent = "declined" // the other one
	handoverBegun    handoverEvent = "begun"    // the new generation is durable
)

var handoverSteps = map[handoverStep]map[handoverEvent]handoverStep{
	handLead:   {handoverAsked: handDrain},
	handDrain:  {handoverDrained: handLevel, handoverFailed: handReturn, handoverLost: handReturn, handoverLate: handReturn},
	handLevel:  {handoverLevel: handDemote, handoverFailed: handReturn, handoverLost: handReturn, handoverLate: handReturn},
	handDemote: {handoverStored: handHanded, handoverFailed: handReturn},
	handReturn: {handoverOpened: handLead},
	handHanded: {handoverAccepted: handFollow, handoverLost: handFollow, handoverDeclined: handTake},
	handFollow: {handoverOrder: handAsk},
	handAsk:    {handoverRefused: handFollow, handoverBack: handFollow, handoverLate: handFollow, handoverTold: handTake},
	handTake:   {handoverBegun: handLead, handoverFailed: handFollow},
}

// nextHandoverStep returns the step after an event; an event that means nothing in a step leaves it as it is. An unknown step
// is a defect.
func nextHandoverStep(s handoverStep, e handoverEvent) handoverStep {
	row, ok := handoverSteps[s]
	if !ok {
		panic(fmt.Sprintf("mirror: handover in unknown step %q", s))
	}
	if next, ok := row[e]; ok {
		return next
	}
	return s
}

// serves: the front may be open, in this step.
func (s handoverStep) serves() bool { return s == handLead }
