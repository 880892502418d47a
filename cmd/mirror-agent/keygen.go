package main

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"mirror-agent/dataport"
)

func newKeygen(a *app) *cobra.Command {
	var file string
	var show, force bool
	c := &cobra.Command{
		Use:   "keygen",
		Short: "Create this host's key, or show its public key",
		Long: `Creates this host's private key (Ed25519, PKCS #8 in PEM, mode 0600) and prints
its public key, which every other host of the mirror gets as --peer-key. A key
that exists is never overwritten without --force: the other hosts know this
host by it.`,
		Example: examples(
			"mirror-agent keygen",
			"mirror-agent keygen --key /etc/mirror-agent/node.key",
			"mirror-agent keygen --show",
		),
		Args: arguments(),
		RunE: func(*cobra.Command, []string) error {
			if show && force {
				return usagef("keygen: --show creates nothing, so --force makes no sense with it")
			}
			if file == "" {
				file = a.env(envName("key"))
			}
			if file == "" {
				file = a.defaultKeyFile()
			}
			key, err := a.keygen(file, show, force)
			if err != nil {
				return err
			}
			a.printf("%s\n", dataport.FormatPublicKey(key.Public().(ed25519.PublicKey)))
			return nil
		},
	}
	c.Flags().StringVar(&file, "key", "", "private key `FILE` (default /etc/mirror-agent/node.key for root, else ~/.config/mirror-agent/node.key)")
	c.Flags().BoolVar(&show, "show", false, "create nothing, print the public key of the existing one")
	c.Flags().BoolVar(&force, "force", false, "overwrite an existing key")
	return c
}

func (a *app) keygen(file string, show, force bool) (ed25519.PrivateKey, error) {
	if show {
		key, err := dataport.LoadKey(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("key %s: no such file; create it with `mirror-agent keygen --key %[1]s`", file)
		}
		return key, err
	}
	if filepath.Dir(file) == filepath.Dir(a.defaultKeyFile()) {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return nil, fmt.Errorf("key's directory: %w; choose another place with --key", err)
		}
	}
	key, err := dataport.GenerateKey()
	if err != nil {
		return nil, err
	}
	if force {
		return key, replaceKey(file, key)
	}
	err = dataport.SaveKey(file, key)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("key %s exists: print its public key with --show, or replace it with --force (the other hosts then need the new one)", file)
	}
	return key, err
}

// replaceKey puts the new key in the old one's place at once: a crash leaves
// one or the other.
func replaceKey(file string, key ed25519.PrivateKey) error {
	fresh := fmt.Sprintf("%s.%d.new", file, os.Getpid())
	if err := dataport.SaveKey(fresh, key); err != nil {
		return err
	}
	if err := os.Rename(fresh, file); err != nil {
		os.Remove(fresh)
		return fmt.Errorf("replace key: %w", err)
	}
	return nil
}
