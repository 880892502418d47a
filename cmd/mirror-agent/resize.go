package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"mirror-agent/mirror"
	"mirror-agent/mirror/control"
)

func newResize(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "resize [SIZE]",
		Short: "Make the mirrored device larger while it is in use",
		Long: `Makes the mirrored device SIZE large, on the source and on every target; without
SIZE as large as the source's backing device has become. Backing files are made
longer by the agents; block devices (lvextend, a larger disk) have to be enlarged
on all hosts before. What is new reads as zeroes. Nothing can be made smaller.

NBD clients see the new size when they connect again; a device that "mirror-agent
attach" attached sees it within seconds. The filesystem is grown after that, with
resize2fs or xfs_growfs.`,
		Example: examples("mirror-agent resize 200GiB", "lvextend -L 200G /dev/vg0/vol0 && mirror-agent resize"),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return arguments("SIZE")(c, args)
		},
	}
	return a.order(c,
		func(ctx context.Context, cl *control.Client, args []string) (mirror.Status, error) {
			var size int64
			if len(args) > 0 {
				var err error
				if size, err = parseSize(args[0]); err == nil && size == 0 {
					err = fmt.Errorf("size %q: must be more than 0", args[0])
				}
				if err != nil {
					return mirror.Status{}, &usageError{err}
				}
			}
			return cl.Resize(ctx, size)
		},
		func(st *mirror.Status) string {
			return fmt.Sprintf("the device has %s (%d bytes)", formatSize(st.Device.SizeBytes), st.Device.SizeBytes)
		})
}
