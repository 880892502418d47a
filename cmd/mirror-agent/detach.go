package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"mirror-agent/blockdev/nbd"
)

func newDetach(a *app) *cobra.Command {
	var index int
	var force bool
	c := &cobra.Command{
		Use:   "detach DEV",
		Short: "Take a block device of the kernel away again",
		Long: `Disconnects a device that "attach" (or nbd-client) connected, and ends the watch
on it. Refused while something is mounted from it or lies on top of it; --force
does it all the same, and whoever uses it then gets errors: for a device whose
server never comes back.`,
		Example: examples("umount /srv/data && mirror-agent detach /dev/nbd0", "mirror-agent detach /dev/nbd0 --force"),
		Args: func(c *cobra.Command, args []string) error {
			if err := arguments("DEV")(c, args); err != nil {
				return err
			}
			var err error
			index, err = parseKernelDevice(args[0])
			return err
		},
		RunE: func(*cobra.Command, []string) error {
			kernel, err := a.openKernel()
			if err != nil {
				return err
			}
			defer kernel.Close()
			if users := kernel.Users(index); len(users) > 0 && !force {
				return fmt.Errorf("/dev/nbd%d: %s; end that first, or use --force", index, strings.Join(users, ", "))
			}
			err = kernel.Detach(index)
			if errors.Is(err, nbd.ErrDetached) {
				return fmt.Errorf("/dev/nbd%d: nothing is attached to it; `lsblk` shows what is", index)
			}
			if err != nil {
				return attachError(index, err)
			}
			a.printf("/dev/nbd%d: detached\n", index)
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "also while it is in use")
	return c
}
