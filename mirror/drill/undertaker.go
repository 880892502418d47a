package drill

import (
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
)

// undertaker is a shell that waits beside a drill. It is told how each thing is taken back; when its input ends without a word
// that all is done, the drill's process is gone, and it takes everything back, the last first.
type undertaker struct {
	cmd  *exec.Cmd
	told io.WriteCloser
}

const undertakerScript = `todo=
while IFS= read -r line; do
	[ "$line" = done ] && exit 0
	todo="$line
$todo"
done
eval "$todo"
sleep 1 # for what was just under way when the drill's process went
eval "$todo"`

func newUndertaker() (*undertaker, error) {
	u := &undertaker{cmd: exec.Command("/bin/sh", "-c", undertakerScript)}
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no Ctrl-C of the terminal
	var err error
	if u.told, err = u.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return u, u.cmd.Start()
}

// tell has words run as a command if the drill's process ends.
func (u *undertaker) tell(words ...string) error {
	for i, w := range words {
		words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	_, err := fmt.Fprintf(u.told, "%s >/dev/null 2>&1\n", strings.Join(words, " "))
	return err
}

// dismiss ends it: everything was taken back.
func (u *undertaker) dismiss() error {
	_, err := io.WriteString(u.told, "done\n")
	if cerr := u.told.Close(); err == nil {
		err = cerr
	}
	if werr := u.cmd.Wait(); err == nil {
		err = werr
	}
	return err
}
