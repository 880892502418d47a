package mirror

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"mirror-agent/journal"
)

// etcd as an arbiter, by its JSON gateway (/v3/…) over net/http, which is in the
// program anyway. Its Go client would add 8 MB to 12.6, and gRPC, protobuf and
// zap to what has to be kept up to date, for four requests.
//
// Two keys for each mirror, below the prefix:
//
//	PREFIX/NAME/lease    attached to the holder's lease: gone when that has passed
//	PREFIX/NAME/record   stays: the highest generation that was leased, and who has
//	                     everything that a FLUSH was answered for
//
// Both are only changed by transactions that compare both.
type etcd struct {
	o     etcdOptions
	http  *http.Client
	next  int   // the endpoint that answered last
	lease int64 // held, 0: none
}

type etcdOptions struct {
	endpoints                 []string // host:port
	prefix                    string   // without slashes at its ends
	tls                       bool
	caFile, certFile, keyFile string
	mirror                    string
	ttl                       time.Duration
}

// parseEtcd reads etcd://HOST:PORT[,HOST:PORT…]/PREFIX; etcds:// is by TLS.
func parseEtcd(s string) (o etcdOptions, err error) {
	rest, plain := strings.CutPrefix(s, "etcd://")
	if !plain {
		if rest, o.tls = strings.CutPrefix(s, "etcds://"); !o.tls {
			return o, fmt.Errorf("%q: choose operator, or etcd://HOST:PORT[,HOST:PORT…]/PREFIX (etcds:// by TLS)", s)
		}
	}
	hosts, prefix, _ := strings.Cut(rest, "/")
	for h := range strings.SplitSeq(hosts, ",") {
		if host, port, err := net.SplitHostPort(h); err != nil || host == "" || port == "" {
			return o, fmt.Errorf("%q: %q is no HOST:PORT", s, h)
		}
		o.endpoints = append(o.endpoints, h)
	}
	o.prefix = strings.Trim(prefix, "/")
	if o.prefix == "" {
		return o, fmt.Errorf("%q: a prefix for the keys is missing, like etcd://%s/mirror-agent", s, hosts)
	}
	return o, nil
}

func newEtcd(o etcdOptions) (*etcd, error) {
	t := &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, DialContext: (&net.Dialer{Timeout: o.ttl / 4}).DialContext}
	if o.tls || o.caFile != "" || o.certFile != "" {
		o.tls = true
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		if o.caFile != "" {
			pem, err := os.ReadFile(o.caFile)
			if err != nil {
				return nil, fmt.Errorf("arbiter-tls-ca: %w", err)
			}
			t.TLSClientConfig.RootCAs = x509.NewCertPool()
			if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("arbiter-tls-ca: %s has no certificate (PEM)", o.caFile)
			}
		}
		if o.certFile != "" {
			pair, err := tls.LoadX509KeyPair(o.certFile, o.keyFile)
			if err != nil {
				return nil, fmt.Errorf("arbiter-tls-cert: %w", err)
			}
			t.TLSClientConfig.Certificates = []tls.Certificate{pair}
		}
	}
	return &etcd{o: o, http: &http.Client{Transport: t, Timeout: o.ttl / 3}}, nil
}

func (e *etcd) Name() string { return "etcd " + strings.Join(e.o.endpoints, ",") }
func (e *etcd) Leases() bool { return true }

// Release see Arbiter.
func (e *etcd) Release(ctx context.Context) error {
	id := e.lease
	e.lease = 0
	if id == 0 {
		return nil
	}
	return e.call(ctx, "/v3/lease/revoke", map[string]any{"ID": fmt.Sprint(id)}, &struct{}{})
}

func (e *etcd) Close() error {
	e.http.CloseIdleConnections()
	return nil
}

// etcdRecord is what the keys hold.
type etcdRecord struct {
	Holder   memberID   `json:"holder"`
	Node     string     `json:"node"`
	Major    uint32     `json:"major"`
	Minor    uint32     `json:"minor"`
	ID       memberID   `json:"generation_id"`
	Eligible []memberID `json:"eligible,omitempty"`
}

func (r *etcdRecord) generation() journal.Generation {
	return journal.Generation{Major: r.Major, Minor: r.Minor, ID: r.ID}
}

func recordOf(h *Holder, g journal.Generation) etcdRecord {
	return etcdRecord{Holder: h.ID, Node: h.Node, Major: g.Major, Minor: g.Minor, ID: g.ID, Eligible: h.Eligible}
}

// etcdState is what was read.
type etcdState struct {
	held     bool // somebody has the lease
	lease    int64
	holder   etcdRecord
	known    bool // there is a record
	record   etcdRecord
	revision int64 // of the record, 0: none
}

// Renew see Arbiter.
func (e *etcd) Renew(ctx context.Context, h Holder) (Ruling, error) {
	if e.lease != 0 {
		ttl, err := e.keepAlive(ctx)
		if err != nil {
			return Ruling{}, err
		}
		if ttl == 0 {
			e.lease = 0
		}
		st, err := e.read(ctx)
		if err != nil {
			return Ruling{}, err
		}
		if ttl > 0 && st.held && st.lease == e.lease {
			if st.known && slices.Equal(st.record.Eligible, h.Eligible) && st.record.generation() == unplaced(h.Generation) {
				return Ruling{TTL: ttl, Recorded: st.record.Eligible}, nil
			}
			ok, err := e.put(ctx, &st, recordOf(&h, h.Generation), false)
			if err != nil || ok {
				return Ruling{TTL: ttl, Recorded: h.Eligible}, err
			}
		}
		e.lease = 0
	}
	st, err := e.read(ctx)
	if err != nil {
		return Ruling{}, err
	}
	if st.known {
		switch rank := compareRank(st.record.generation(), h.Generation); {
		case rank > 0, rank == 0 && st.record.ID != memberID(h.Generation.ID):
			return Ruling{Superseded: true, Refused: fmt.Sprintf("%s was leased generation %s, this is %s", st.record.Node, rankString(st.record.generation()), rankString(h.Generation))}, nil
		}
	}
	if st.held {
		return Ruling{Refused: fmt.Sprintf("%s has the lease", st.holder.Node), Recorded: st.record.Eligible}, nil
	}
	r := recordOf(&h, h.Generation)
	if st.record.Holder == h.ID {
		r.Eligible = st.record.Eligible // until it is known what they have now
	}
	return e.take(ctx, &st, r)
}

// unplaced is a generation without its place in a log.
func unplaced(g journal.Generation) journal.Generation {
	return journal.Generation{Major: g.Major, Minor: g.Minor, ID: g.ID}
}

// Grant see Arbiter.
func (e *etcd) Grant(ctx context.Context, h Holder, dryRun bool) (Ruling, error) {
	st, err := e.read(ctx)
	switch {
	case err != nil:
		return Ruling{}, err
	case !st.known:
		return Ruling{Refused: "it has no record of this mirror: no source has ever held its lease"}, nil
	case st.held:
		return Ruling{Refused: fmt.Sprintf("%s has the lease", st.holder.Node)}, nil
	case st.record.Holder != h.ID && !slices.Contains(st.record.Eligible, h.ID):
		return Ruling{Refused: fmt.Sprintf("by its record this host lacks what was flushed: %s, the last primary, went on without it", st.record.Node)}, nil
	case dryRun:
		return Ruling{}, nil
	}
	g := journal.Generation{Major: max(st.record.Major, h.Generation.Major) + 1}
	_, _ = rand.Read(g.ID[:]) // never fails
	r := recordOf(&h, g)
	r.Eligible = []memberID{h.ID} // it may try again when it dies before it begins
	ruling, err := e.take(ctx, &st, r)
	ruling.Generation = g
	return ruling, err
}

// take gets a lease and makes r the record, if nothing has changed since st was read.
func (e *etcd) take(ctx context.Context, st *etcdState, r etcdRecord) (Ruling, error) {
	var grant struct {
		ID  int64 `json:"ID,string"`
		TTL int64 `json:"TTL,string"`
	}
	if err := e.call(ctx, "/v3/lease/grant", map[string]any{"TTL": int64(e.o.ttl / time.Second)}, &grant); err != nil {
		return Ruling{}, err
	}
	e.lease = grant.ID
	ok, err := e.put(ctx, st, r, true)
	if err == nil && !ok {
		err = e.call(ctx, "/v3/lease/revoke", map[string]any{"ID": fmt.Sprint(grant.ID)}, &struct{}{})
		e.lease = 0
		return Ruling{Refused: "somebody else was quicker"}, err
	}
	if err != nil {
		return Ruling{}, err // it may have been taken: the next call finds out
	}
	return Ruling{TTL: min(e.o.ttl, time.Duration(grant.TTL)*time.Second), Recorded: r.Eligible}, nil
}

func (e *etcd) leaseKey() []byte  { return []byte(e.o.prefix + "/" + e.o.mirror + "/lease") }
func (e *etcd) recordKey() []byte { return []byte(e.o.prefix + "/" + e.o.mirror + "/record") }

// put writes the record, and with first the lease's key too, unless either has changed since st was read.
func (e *etcd) put(ctx context.Context, st *etcdState, r etcdRecord, first bool) (ok bool, err error) {
	value, err := json.Marshal(r)
	if err != nil {
		return false, err
	}
	compare := []any{map[string]any{"key": e.recordKey(), "target": "MOD", "result": "EQUAL", "mod_revision": fmt.Sprint(st.revision)}}
	success := []any{map[string]any{"request_put": map[string]any{"key": e.recordKey(), "value": value}}}
	if first {
		compare = append(compare, map[string]any{"key": e.leaseKey(), "target": "VERSION", "result": "EQUAL", "version": "0"})
		success = append(success, map[string]any{"request_put": map[string]any{"key": e.leaseKey(), "value": value, "lease": fmt.Sprint(e.lease)}})
	} else {
		compare = append(compare, map[string]any{"key": e.leaseKey(), "target": "LEASE", "result": "EQUAL", "lease": fmt.Sprint(e.lease)})
	}
	var reply struct {
		Succeeded bool `json:"succeeded"`
	}
	err = e.call(ctx, "/v3/kv/txn", map[string]any{"compare": compare, "success": success}, &reply)
	return reply.Succeeded, err
}

func (e *etcd) read(ctx context.Context) (st etcdState, err error) {
	type kv struct {
		Value    []byte `json:"value"`
		Revision int64  `json:"mod_revision,string"`
		Lease    int64  `json:"lease,string"`
	}
	var reply struct {
		Responses []struct {
			Range struct {
				KVs []kv `json:"kvs"`
			} `json:"response_range"`
		} `json:"responses"`
	}
	ask := func(key []byte) any { return map[string]any{"request_range": map[string]any{"key": key}} }
	if err := e.call(ctx, "/v3/kv/txn", map[string]any{"success": []any{ask(e.leaseKey()), ask(e.recordKey())}}, &reply); err != nil {
		return st, err
	}
	if len(reply.Responses) != 2 {
		return st, fmt.Errorf("%d answers instead of two", len(reply.Responses))
	}
	if l := reply.Responses[0].Range.KVs; len(l) == 1 {
		st.held, st.lease = true, l[0].Lease
		if err := json.Unmarshal(l[0].Value, &st.holder); err != nil {
			return st, fmt.Errorf("key %s: %w", e.leaseKey(), err)
		}
	}
	if l := reply.Responses[1].Range.KVs; len(l) == 1 {
		st.known, st.revision = true, l[0].Revision
		if err := json.Unmarshal(l[0].Value, &st.record); err != nil {
			return st, fmt.Errorf("key %s: %w", e.recordKey(), err)
		}
	}
	return st, nil
}

// keepAlive returns how long the lease lasts from now on, 0 when it has passed.
func (e *etcd) keepAlive(ctx context.Context) (time.Duration, error) {
	var reply struct {
		Result struct {
			TTL int64 `json:"TTL,string"`
		} `json:"result"`
	}
	err := e.call(ctx, "/v3/lease/keepalive", map[string]any{"ID": fmt.Sprint(e.lease)}, &reply)
	return min(e.o.ttl, time.Duration(reply.Result.TTL)*time.Second), err
}

const maxEtcdReply = 1 << 20

// call asks the endpoints in turn until one answers. What is not idempotent here is compared with what was read before.
func (e *etcd) call(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	var errs []error
	for range e.o.endpoints {
		at := e.o.endpoints[e.next%len(e.o.endpoints)]
		err := e.post(ctx, at, path, body, out)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
		e.next++
	}
	return errors.Join(errs...)
}

func (e *etcd) post(ctx context.Context, at, path string, body []byte, out any) error {
	scheme := "http://"
	if e.o.tls {
		scheme = "https://"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, scheme+at+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	reply, err := e.http.Do(r)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	limited := io.LimitReader(reply.Body, maxEtcdReply)
	if reply.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(limited, 300))
		hint := ""
		if reply.StatusCode == http.StatusServiceUnavailable && e.o.certFile != "" {
			hint = "; if etcd is up: its gateway shows etcd's own certificate to etcd, which with --client-cert-auth has to be good for clients, too"
		}
		return fmt.Errorf("etcd at %s answers %s to %s: %s%s", at, reply.Status, path, strings.TrimSpace(string(text)), hint)
	}
	if err := json.NewDecoder(limited).Decode(out); err != nil {
		return fmt.Errorf("etcd at %s: %s: %w", at, path, err)
	}
	return nil
}
