package integration

import (
	"testing"
)

func TestMatrixOne(t *testing.T) {
	for name, f := range map[string]func(c *cell){"path": faultPath, "target": faultTargetKilled, "source": faultSourceKilled, "both": faultBothKilled, "partition": faultPartition, "oneway": faultOneWay, "full": faultDiskFull, "eio": faultDiskError, "old": faultOldSource, "double": faultDoublePromote, "backup": faultBackupKilled} {
		for _, mode := range matrixModes {
			t.Run(name+"/"+mode, func(t *testing.T) {
				lay := netLayout{}
				switch name {
				case "double":
					lay = netLayout{toBackup: 2, sourceArgs: []string{"--backups", "hot"}}
				case "backup":
					lay.toBackup = 2
				}
				c := newCell(t, mode, lay)
				f(c)
			})
		}
	}
}

func TestMatrixPowerSource(t *testing.T) { powerSource(t) }
func TestMatrixPowerTarget(t *testing.T) { powerTarget(t) }
