package mirror

import (
	"fmt"
	"strings"
)

// Mode says what a write and a FLUSH of the application wait for. It is a
// property of the mirror and may be changed while it runs.
type Mode string

// The modes. A write waits in ModeAsync and ModeFlush for the journal here, in
// ModeReceive for that of the target too (in the hands of its OS), in
// ModeDurable for both disks. A FLUSH waits in all but ModeAsync for both disks.
// What each one loses when the source burns down: ModeAsync what was in flight,
// ModeFlush nothing that was flushed, ModeReceive nothing that was answered
// unless the target loses power too, ModeDurable nothing that was answered.
const (
	ModeAsync   Mode = "async"
	ModeFlush   Mode = "flush"
	ModeReceive Mode = "receive"
	ModeDurable Mode = "durable"
)

// ParseMode reads a mode's name.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(strings.ToLower(s)); m {
	case ModeAsync, ModeFlush, ModeReceive, ModeDurable:
		return m, nil
	}
	return "", fmt.Errorf("unknown mode %q: choose async, flush, receive or durable", s)
}

// OnLoss says what the source does when no target counts for the mode.
type OnLoss string

// OnLossContinue goes on alone and raises an alarm; OnLossFreeze lets writes
// and flushes wait until a target is back.
const (
	OnLossContinue OnLoss = "continue"
	OnLossFreeze   OnLoss = "freeze"
)

// ParseOnLoss reads a policy's name.
func ParseOnLoss(s string) (OnLoss, error) {
	switch o := OnLoss(strings.ToLower(s)); o {
	case OnLossContinue, OnLossFreeze:
		return o, nil
	}
	return "", fmt.Errorf("unknown on-loss policy %q: choose continue or freeze", s)
}

// SwitchMode says who starts the switch-over to a backup target.
type SwitchMode string

// SwitchManual waits for the operator, SwitchAuto for nobody.
const (
	SwitchManual SwitchMode = "manual"
	SwitchAuto   SwitchMode = "auto"
)

// ParseSwitchMode reads a switch mode's name.
func ParseSwitchMode(s string) (SwitchMode, error) {
	switch m := SwitchMode(strings.ToLower(s)); m {
	case SwitchManual, SwitchAuto:
		return m, nil
	}
	return "", fmt.Errorf("unknown switch mode %q: choose manual or auto", s)
}

// OnFull says what the source does when the log is full of what a connected
// follower has not got.
type OnFull string

// OnFullTrack lets the follower hold writers up for Config.PushBack at most;
// then it notes which blocks the follower lacks, goes on without it, and
// resyncs those blocks later. OnFullWait lets writers wait as long as it takes.
const (
	OnFullTrack OnFull = "track"
	OnFullWait  OnFull = "wait"
)

// ParseOnFull reads a policy's name.
func ParseOnFull(s string) (OnFull, error) {
	switch o := OnFull(strings.ToLower(s)); o {
	case OnFullTrack, OnFullWait:
		return o, nil
	}
	return "", fmt.Errorf("unknown on-full policy %q: choose track or wait", s)
}

// Alone says what a restarted source does when no follower answers within
// Config.StartWait.
type Alone string

// AloneServe opens the front all the same, AloneRefuse waits for a follower.
const (
	AloneServe  Alone = "serve"
	AloneRefuse Alone = "refuse"
)

// ParseAlone reads a policy's name.
func ParseAlone(s string) (Alone, error) {
	switch a := Alone(strings.ToLower(s)); a {
	case AloneServe, AloneRefuse:
		return a, nil
	}
	return "", fmt.Errorf("unknown alone policy %q: choose serve or refuse", s)
}
