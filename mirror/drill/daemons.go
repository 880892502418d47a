package drill

import (
	"context"
	"errors"
	"strings"
	"time"
)

// A check may start a daemon on the mount, as a database is started for the checks after it. Such a process has left its group and its
// session, and nothing in the mount can be taken back while it is there. Those that have something open in the mount, or are in it, are
// sent a signal; not those with a terminal: that is somebody who looks around.

// endDaemonsScript prints whom it has signalled. $1 the mount as find's pattern, $2 as it is, $3 the signal. What lies in the directory
// below the mount has the same names, but is on the device of what is above it. One line, for the undertaker.
const endDaemonsScript = `signal=$3; above=$(stat -c %d "$2/..") || exit; ` +
	`find /proc/[0-9]*/cwd /proc/[0-9]*/fd -maxdepth 1 '(' -lname "$1" -o -lname "$1/*" ')' 2>/dev/null | while read -r f; do ` +
	`on=$(stat -L -c %d "$f" 2>/dev/null) && [ "$on" != "$above" ] || continue; p=${f#/proc/}; p=${p%%/*}; ` +
	`read -r line <"/proc/$p/stat" || continue; set -- ${line##*") "}; [ "$5" = 0 ] && kill -"$signal" "$p" && echo "$p"; done 2>/dev/null; true`

var findPattern = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// endDaemons is the command that does it.
func endDaemons(dir, signal string) []string {
	return []string{"/bin/sh", "-c", endDaemonsScript, "sh", findPattern.Replace(dir), dir, signal}
}

// leave unmounts dir; daemons that hold it are ended, first in a way that lets them end well.
func leave(ctx context.Context, dir string) error {
	_, err := run(ctx, "umount", dir)
	for _, signal := range []string{"TERM", "KILL"} {
		if err == nil {
			return nil
		}
		line := endDaemons(dir, signal)
		who, failed := run(ctx, line[0], line[1:]...)
		if failed != nil || who == "" {
			break
		}
		for end := time.Now().Add(killAfter); err != nil && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
			_, err = run(ctx, "umount", dir)
		}
	}
	if err != nil { // somebody is in there still
		_, lazy := run(ctx, "umount", "-l", dir)
		err = errors.Join(err, lazy)
	}
	return err
}
