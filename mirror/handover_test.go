package mirror

import (
	"fmt"
	"slices"
	"testing"
)

// TestHandoverSteps: every step with every event: those of the table lead on, all others change nothing.
func TestHandoverSteps(t *testing.T) {
	events := []handoverEvent{
		handoverOrder, handoverAsked, handoverRefused, handoverDrained, handoverLevel, handoverStored, handoverFailed, handoverLost,
		handoverLate, handoverOpened, handoverTold, handoverBack, handoverAccepted, handoverDeclined, handoverBegun,
	}
	for _, c := range []struct {
		step handoverStep
		row  string
	}{
		{handLead, "asked→drain"},
		{handDrain, "drained→level failed→return lost→return late→return"},
		{handLevel, "level→demote failed→return lost→return late→return"},
		{handDemote, "stored→handed failed→return"},
		{handReturn, "opened→lead"},
		{handHanded, "lost→follow accepted→follow declined→take"},
		{handFollow, "order→ask"},
		{handAsk, "refused→follow late→follow told→take back→follow"},
		{handTake, "failed→follow begun→lead"},
	} {
		row := ""
		for _, e := range events {
			if next := nextHandoverStep(c.step, e); next != c.step {
				row += fmt.Sprintf(" %s→%s", e, next)
			}
		}
		if row != " "+c.row {
			t.Errorf("%s:%s, want %s", c.step, row, c.row)
		}
	}
	if len(handoverSteps) != 9 {
		t.Errorf("%d steps", len(handoverSteps))
	}
	for s := range handoverSteps {
		if s.serves() != (s == handLead) {
			t.Errorf("%s serves", s)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("an unknown step did nothing")
		}
	}()
	nextHandoverStep("nowhere", handoverOrder)
}

// handoverWorld is both sides, what is on their disks, and what is on its way between them.
type handoverWorld struct {
	step     [2]handoverStep // source, target; "" is dead
	primary  [2]bool         // what the disk says
	handed   bool            // the source's disk says that it handed over
	token    int             // of the target's last order
	askToken int             // of the ask on its way, said of that to the target
	said     int
	srcToken int    // of the order that the source has begun, or handed over by
	toSource string // one word on its way, "" none
	toTarget string
	level    bool // all that was answered is durable at the target
	began    bool // the target has begun a generation
	orders   int  // left
	troubles int  // left: kills, cuts, and times that are over
	diverged bool
}

// world moves that the machine allows. What a step does is said here as doc.go says it; what comes of it the table says.
func (w handoverWorld) moves() (next []handoverWorld, names []string) {
	add := func(name string, change func(*handoverWorld)) {
		n := w
		change(&n)
		next, names = append(next, n), append(names, name)
	}
	go1 := func(n *handoverWorld, side int, e handoverEvent) { n.step[side] = nextHandoverStep(n.step[side], e) }
	const src, dst = 0, 1
	// The source serves: something is answered that the target has not got yet.
	for side, s := range w.step {
		if s.serves() {
			add(fmt.Sprintf("%d answers", side), func(n *handoverWorld) { n.level = false })
		}
	}
	switch w.step[src] {
	case handLead:
		if w.toSource == "ask" {
			add("asked", func(n *handoverWorld) { n.toSource, n.srcToken = "", n.askToken; go1(n, src, handoverAsked) })
		}
	case handDrain:
		add("drained", func(n *handoverWorld) { go1(n, src, handoverDrained) })
	case handLevel:
		if w.step[dst] != "" {
			add("level", func(n *handoverWorld) { n.level = true; go1(n, src, handoverLevel) })
		}
	case handDemote:
		add("stored", func(n *handoverWorld) { n.primary[src], n.handed = false, true; go1(n, src, handoverStored) })
		add("not stored", func(n *handoverWorld) { go1(n, src, handoverFailed) })
	case handReturn:
		add("opened", func(n *handoverWorld) { n.toTarget, n.said = "back", n.srcToken; go1(n, src, handoverOpened) })
	case handHanded:
		if w.toTarget == "" {
			add("say handed", func(n *handoverWorld) { n.toTarget, n.said = "handed", n.srcToken })
		}
		switch w.toSource {
		case "accepted":
			add("accepted", func(n *handoverWorld) { n.toSource = ""; go1(n, src, handoverAccepted) })
		case "declined":
			add("declined", func(n *handoverWorld) { n.toSource = ""; go1(n, src, handoverDeclined) })
		}
	case handTake:
		add("the source begins", func(n *handoverWorld) {
			n.primary[src], n.handed = true, false
			go1(n, src, handoverBegun)
		})
	case handFollow:
		if w.handed && w.toTarget == "" && w.step[dst] != "" {
			add("call in", func(n *handoverWorld) { n.toTarget, n.said = "handed", n.srcToken })
		}
	}
	switch w.step[dst] {
	case handFollow:
		if w.orders > 0 {
			add("order", func(n *handoverWorld) {
				n.orders--
				n.token++
				n.askToken, n.toSource = n.token, "ask"
				go1(n, dst, handoverOrder)
			})
		}
		switch w.toTarget {
		case "handed": // nobody waits for it: declined, to a source that still listens
			add("decline", func(n *handoverWorld) {
				n.toTarget = ""
				if n.step[src] == handHanded {
					n.toSource = "declined"
				}
			})
		case "back":
			add("back, late", func(n *handoverWorld) { n.toTarget = "" })
		}
	case handAsk:
		switch {
		case w.toTarget == "handed" && w.said == w.token:
			add("told", func(n *handoverWorld) {
				n.toTarget, n.toSource = "", "accepted"
				go1(n, dst, handoverTold)
			})
		case w.toTarget == "handed": // by an order before
			add("told of another order", func(n *handoverWorld) { n.toTarget = "" })
		case w.toTarget == "back" && w.said == w.token:
			add("back", func(n *handoverWorld) { n.toTarget = ""; go1(n, dst, handoverBack) })
		case w.toTarget == "back":
			add("back of another order", func(n *handoverWorld) { n.toTarget = "" })
		}
	case handTake:
		add("the target begins", func(n *handoverWorld) {
			n.diverged = !n.level
			n.primary[dst], n.began = true, true
			go1(n, dst, handoverBegun)
		})
		add("the target cannot begin", func(n *handoverWorld) { go1(n, dst, handoverFailed) })
	case handLead:
		if w.toTarget == "handed" {
			add("accept", func(n *handoverWorld) { n.toTarget, n.toSource = "", "accepted" })
		}
	}
	if w.troubles == 0 {
		return next, names
	}
	trouble := func(name string, change func(*handoverWorld)) {
		add(name, func(n *handoverWorld) { n.troubles--; change(n) })
	}
	cut := func(n *handoverWorld) { n.toSource, n.toTarget = "", "" }
	trouble("cut", func(n *handoverWorld) {
		cut(n)
		if n.step[src] != "" {
			go1(n, src, handoverLost)
		}
	})
	for side, s := range w.step {
		if s == "" {
			add(fmt.Sprintf("%d starts", side), func(n *handoverWorld) {
				n.step[side] = handFollow
				if n.primary[side] {
					n.step[side] = handLead
				}
			})
			continue
		}
		trouble(fmt.Sprintf("%d is killed", side), func(n *handoverWorld) {
			cut(n)
			n.step[side] = ""
			if side == dst && n.step[src] != "" {
				go1(n, src, handoverLost)
			}
		})
		trouble(fmt.Sprintf("%d is late", side), func(n *handoverWorld) {
			go1(n, side, handoverLate)
		})
	}
	return next, names
}

// TestHandoverModel goes through everything that can happen in two orders with three kills, cuts or times that are over: never
// do both sides serve, or do both disks say primary, never does the target begin without all that was answered, and whoever
// is left in a state in which nobody leads is so by a source that says that it has handed over.
func TestHandoverModel(t *testing.T) {
	start := handoverWorld{step: [2]handoverStep{handLead, handFollow}, primary: [2]bool{true, false}, orders: 2, troubles: 3}
	type visit struct {
		from handoverWorld
		by   string
	}
	seen := map[handoverWorld]visit{start: {}}
	queue := []handoverWorld{start}
	reached := map[[2]handoverStep]bool{}
	story := func(w handoverWorld) (s string) {
		for w != start {
			v := seen[w]
			s, w = "\n  "+v.by+s, v.from
		}
		return s
	}
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		reached[w.step] = true
		var wrong string
		switch {
		case w.step[0].serves() && w.step[1].serves():
			wrong = "both serve"
		case w.primary[0] && w.primary[1]:
			wrong = "both disks say primary"
		case w.diverged:
			wrong = "the target begins without all that was answered"
		case !w.primary[0] && !w.primary[1] && !w.handed:
			wrong = "nobody leads, and nobody says why"
		}
		if wrong != "" {
			t.Fatalf("%s: %+v%s", wrong, w, story(w))
		}
		next, names := w.moves()
		for i, n := range next {
			if _, ok := seen[n]; !ok {
				seen[n] = visit{w, names[i]}
				queue = append(queue, n)
			}
		}
	}
	for _, want := range [][2]handoverStep{{handFollow, handLead}, {handLead, handFollow}, {handReturn, handAsk}, {handTake, handFollow}, {handHanded, handTake}, {"", handLead}} {
		if !reached[want] {
			t.Errorf("%v was never reached", want)
		}
	}
	if len(seen) < 1000 {
		t.Errorf("only %d states", len(seen))
	}
	var all []string
	for s := range reached {
		all = append(all, string(s[0])+"/"+string(s[1]))
	}
	slices.Sort(all)
	t.Logf("%d states, pairs of steps %v", len(seen), all)
}
