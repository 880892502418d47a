package mirror

import (
	"testing"
	"time"
)

func TestMeet(t *testing.T) {
	asked := time.Unix(1000, 0)
	answered := asked.Add(200 * time.Millisecond)
	h := meet("fra2", "v1", asked.Add(5100*time.Millisecond).UnixNano(), asked, answered)
	if h.Name != "fra2" || h.Version != "v1" || h.ClockAhead != 5 || h.ClockUnsure != 0.1 || !h.Met.Equal(answered) {
		t.Errorf("%+v", h)
	}
	if h := meet("fra2", "", 0, asked, answered); h.ClockAhead != 0 || h.ClockUnsure != 0 {
		t.Errorf("an agent that does not tell its time: %+v", h)
	}
}
