package integration

import (
	"testing"
)

func TestMatrixOne(t *testing.T) {
	for name, f := range map[string]func(c *cell){"path": faultPath, "target": faultTargetKilled, "source": faultSourceKilled, "both": faultBothKilled, "partition": faultPartition, "oneway": faultOneWay, "full": faultDiskFull, "eio": faultDiskError} {
		for _, mode := range matrixModes {
			t.Run(name+"/"+mode, func(t *testing.T) {
				c := newCell(t, mode, netLayout{})
				f(c)
			})
		}
	}
}
