package drill

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"mirror-agent/mirror"
)

// Config is a drill as the operator describes it.
type Config struct {
	Label string `yaml:"label"`
	// Kind is what is tried; empty is View. See kind.go for what is of the others alone.
	Kind  Kind `yaml:"kind"`
	Moves `yaml:",inline"`
	// At is the point, see mirror.CheckPoint; empty is the newest.
	At string `yaml:"at"`
	// NBD, ScratchDir: see mirror.DrillOptions.
	NBD        string `yaml:"nbd"`
	ScratchDir string `yaml:"scratch-dir"`
	// ScratchSize in words, like 20GiB; who reads the file parses it.
	ScratchSize string `yaml:"scratch-size"`

	// Device is how the view becomes a block device.
	Device Means `yaml:"device"`
	// Mount is a directory to mount it at; empty: it is not mounted. MountOptions are those of mount -o.
	Mount        string `yaml:"mount"`
	MountOptions string `yaml:"mount-options"`

	// Checks run in order until one fails, or all with KeepGoing. Cleanup runs in any case, before the mount goes.
	Checks    []Check `yaml:"checks"`
	Cleanup   []Check `yaml:"cleanup"`
	KeepGoing bool    `yaml:"keep-going"`

	// Report is the directory of the report's files.
	Report string `yaml:"report"`
}

// Check is a command of the operator, for /bin/sh.
type Check struct {
	Name string `yaml:"name"`
	Run  string `yaml:"run"`
	// Timeout after which it has failed.
	Timeout time.Duration `yaml:"timeout"`
	// BeforeMount runs it while the device is not mounted, as fsck wants it.
	BeforeMount bool `yaml:"before-mount"`
}

// Means of making a block device.
type Means string

// Auto is the kernel's client where there is one, else nbdfuse, else nothing.
const (
	Auto   Means = "auto"
	Kernel Means = "kernel"
	Fuse   Means = "fuse"
	None   Means = "none"
)

const (
	defaultTimeout = 10 * time.Minute
	maxChecks      = 100
)

// ParseConfig reads a drill's file and checks everything that can be checked without an agent. What the command line says comes
// before what the file says: each of said changes it.
func ParseConfig(text []byte, said ...func(*Config)) (c Config, err error) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		if t := (*yaml.TypeError)(nil); errors.As(err, &t) {
			return c, errors.New(t.Errors[0])
		}
		return c, err
	}
	for _, change := range said {
		change(&c)
	}
	return c, c.Validate()
}

// Validate fills in the defaults and says what cannot be.
func (c *Config) Validate() error {
	if err := c.validateKind(); err != nil {
		return err
	}
	if err := mirror.CheckPoint(c.At); err != nil {
		return fmt.Errorf("at: %w", err)
	}
	if c.Device == "" {
		c.Device = Auto
	}
	if c.Report == "" {
		c.Report = "."
	}
	switch c.Device {
	case Auto, Kernel, Fuse, None:
	default:
		return fmt.Errorf("device: %q: choose auto, kernel, fuse or none", c.Device)
	}
	if c.Mount != "" && !filepath.IsAbs(c.Mount) {
		return fmt.Errorf("mount: %q: give a directory from /", c.Mount)
	}
	if c.Mount != "" && c.Device == None {
		return errors.New("mount: nothing is mounted with device: none")
	}
	if c.MountOptions != "" && c.Mount == "" {
		return errors.New("mount-options: there is no mount")
	}
	if len(c.Checks) == 0 && c.Kind == View {
		return errors.New("checks: a drill without a check shows nothing; give at least one")
	}
	for _, list := range []struct {
		name   string
		checks []Check
	}{{"checks", c.Checks}, {"cleanup", c.Cleanup}} {
		if len(list.checks) > maxChecks {
			return fmt.Errorf("%s: %d commands, at most %d", list.name, len(list.checks), maxChecks)
		}
		for i := range list.checks {
			if err := list.checks[i].validate(c); err != nil {
				return fmt.Errorf("%s, number %d: %w", list.name, i+1, err)
			}
		}
	}
	return nil
}

func (k *Check) validate(c *Config) error {
	switch {
	case k.Run == "":
		return errors.New("run: give a command")
	case k.Timeout < 0:
		return fmt.Errorf("timeout: %v is negative", k.Timeout)
	case k.BeforeMount && c.Mount == "":
		return errors.New("before-mount: there is no mount")
	}
	if k.Name == "" {
		k.Name = k.Run
	}
	if k.Timeout == 0 {
		k.Timeout = defaultTimeout
	}
	return nil
}
