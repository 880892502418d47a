package page

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// ask sends a request with headers "Name: value".
func ask(t *testing.T, method, target, body string, headers ...string) (int, string, *http.Response) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		r.Header.Set(k, v)
		if k == "Host" {
			r.Host = v
		}
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(b), answer
}

// signIn returns the header with a session's cookie.
func signIn(t *testing.T, at string) string {
	t.Helper()
	code, body, answer := ask(t, "POST", at+"/login", url.Values{"token": {secret}}.Encode(), "Content-Type: application/x-www-form-urlencoded", "Origin: "+at)
	cookie := answer.Header.Get("Set-Cookie")
	if code != http.StatusSeeOther || !strings.Contains(cookie, "HttpOnly; SameSite=Strict") {
		t.Fatalf("sign in: %d, %q, %s", code, cookie, body)
	}
	value, _, _ := strings.Cut(cookie, ";")
	return "Cookie: " + value
}

func TestDoorWithToken(t *testing.T) {
	at := serve(t, newFakeAgent(), withToken)
	cookie := signIn(t, at)
	for _, tt := range []struct {
		name, method, path string
		headers            []string
		code               int
		says               string
	}{
		{"nobody", "GET", "/v1/checkpoints", nil, 401, "sign in"},
		{"nobody at the stream", "GET", "/v1/stream", nil, 401, "sign in"},
		{"nobody at the page", "GET", "/", nil, 200, `type="password"`},
		{"nobody at the style", "GET", "/assets/page.css", nil, 200, "prefers-color-scheme"},
		{"a session", "GET", "/v1/checkpoints", []string{cookie}, 200, "nightly"},
		{"a session at the page", "GET", "/", []string{cookie}, 200, `id="topology"`},
		{"a session that was made longer", "GET", "/v1/checkpoints", []string{strings.Replace(cookie, "=", "=z", 1)}, 401, ""},
		{"a script", "GET", "/v1/checkpoints", []string{"Authorization: Bearer " + secret}, 200, "nightly"},
		{"a script with another token", "GET", "/v1/checkpoints", []string{"Authorization: Bearer " + secret + "x"}, 401, ""},
		{"another site's name", "GET", "/v1/checkpoints", []string{cookie, "Host: evil.example"}, 421, "not the agent's"},
		{"localhost", "GET", "/v1/checkpoints", []string{cookie, "Host: localhost:1"}, 200, ""},
		{"no such thing", "GET", "/v1/nothing", []string{cookie}, 404, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, body, answer := ask(t, tt.method, at+tt.path, "", tt.headers...)
			if code != tt.code || !strings.Contains(body, tt.says) {
				t.Errorf("%d: %.300s; want %d and %q", code, body, tt.code, tt.says)
			}
			if p := answer.Header.Get("Content-Security-Policy"); !strings.Contains(p, "default-src 'none'") || strings.Contains(p, "unsafe") {
				t.Errorf("policy %q", p)
			}
		})
	}
	form := "Content-Type: application/x-www-form-urlencoded"
	if code, body, _ := ask(t, "POST", at+"/login", "token=wrong", form, "Origin: "+at); code != 403 || !strings.Contains(body, `role="alert"`) {
		t.Errorf("a wrong token: %d %s", code, body)
	}
	if code, _, answer := ask(t, "POST", at+"/login", "token="+secret, form, "Origin: http://evil.example"); code != 403 || answer.Header.Get("Set-Cookie") != "" {
		t.Errorf("signed in by another site: %d", code)
	}
}

// TestSessionsEnd: by their time, by another token, and with the agent.
func TestSessionsEnd(t *testing.T) {
	word, broken := secret, error(nil)
	d := newDoor(&Options{Token: func() (string, error) { return word, broken }})
	now := time.Now()
	d.now = func() time.Time { return now }
	c, err := d.session(true)
	if err != nil || !c.Secure {
		t.Fatal(c, err)
	}
	r := &http.Request{Header: http.Header{}}
	r.AddCookie(c)
	knows := func(what string, want bool) {
		t.Helper()
		if got := d.knows(r); got != want {
			t.Errorf("%s: %t", what, got)
		}
	}
	knows("at once", true)
	word = "another-token-0123456789"
	knows("with another token", false)
	word, broken = secret, errors.New("no such file")
	knows("without a file", false)
	broken = nil
	now = now.Add(sessionTime - time.Second)
	knows("in the end", true)
	now = now.Add(time.Second)
	knows("after the end", false)
	now = now.Add(-time.Hour)
	d.key[0]++
	knows("of another run", false)
}

// TestDoorWithCertificates: a client's certificate that was checked lets in, and where a token is asked for too, both are needed.
func TestDoorWithCertificates(t *testing.T) {
	checked := &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Raw: []byte("a client")}}}, PeerCertificates: []*x509.Certificate{{Raw: []byte("a client")}}}
	other := &tls.ConnectionState{VerifiedChains: checked.VerifiedChains, PeerCertificates: []*x509.Certificate{{Raw: []byte("another")}}}
	o := Options{Certificates: true, Control: true}
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
	d := newDoor(&o)
	for _, tt := range []struct {
		name string
		tls  *tls.ConnectionState
		want bool
	}{{"without TLS", nil, false}, {"without a certificate", &tls.ConnectionState{}, false}, {"with one", checked, true}} {
		if got := d.knows(&http.Request{TLS: tt.tls, Header: http.Header{}}); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
	withToken(&o)
	if newDoor(&o).knows(&http.Request{TLS: checked, Header: http.Header{}}) {
		t.Error("let in without the token")
	}

	page, err := d.pageToken(&http.Request{TLS: checked})
	if err != nil {
		t.Fatal(err)
	}
	order := func(state *tls.ConnectionState, origin string) bool {
		return d.ours(&http.Request{TLS: state, Host: "nyc1:7480", Header: http.Header{"Origin": {origin}, pageTokenKey: {page}}})
	}
	if !order(checked, "https://nyc1:7480") || order(checked, "http://nyc1:7480") || order(checked, "null") || order(other, "https://nyc1:7480") {
		t.Error("orders of the wrong page, or not of the right one")
	}
}

func TestOrders(t *testing.T) {
	a := newFakeAgent()
	at := serve(t, a, withToken, func(o *Options) { o.Control = true })
	cookie := signIn(t, at)
	body := followAs(t, at, cookie).next("hello").data
	var h hello
	if err := json.Unmarshal([]byte(body), &h); err != nil || !h.Control || h.Token == "" {
		t.Fatalf("hello %s: %v", body, err)
	}
	asJSON, own, token := "Content-Type: application/json", "Origin: "+at, "X-Page-Token: "+h.Token
	for _, tt := range []struct {
		name, order, body string
		headers           []string
		code              int
		says, given       string
	}{
		{"the page", "switch", `{"to":"10.1.0.9:7400"}`, []string{cookie, asJSON, own, token}, 200, "", "switch 10.1.0.9:7400"},
		{"a dry run", "promote", `{"dry_run":true}`, []string{cookie, asJSON, own, token}, 200, `"dry_run":true`, "promote false true false"},
		{"promote", "promote", `{}`, []string{cookie, asJSON, own, token}, 200, "", "promote false false false"},
		{"take over", "take-over", `{}`, []string{cookie, asJSON, own, token}, 200, "", "promote false false true"},
		{"verify", "verify", `{}`, []string{cookie, asJSON, own, token}, 200, "", "verify"},
		{"stop it", "verify-stop", ``, []string{cookie, asJSON, own, token}, 200, "", "verify-stop"},
		{"drill", "drill-start", `{"at":"checkpoint:nightly"}`, []string{cookie, asJSON, own, token}, 200, `"id":7`, `drill-start "checkpoint:nightly" ""`},
		{"stop the drill", "drill-stop", `{"id":7}`, []string{cookie, asJSON, own, token}, 200, `"id":7`, "drill-stop 7 stopped from the page"},
		{"stop whichever drill", "drill-stop", `{}`, []string{cookie, asJSON, own, token}, 409, "say which drill", ""},
		{"suspend", "suspend", `{}`, []string{cookie, asJSON, own, token}, 200, "", "suspend"},
		{"resume", "resume", `{}`, []string{cookie, asJSON, own, token}, 200, "", "resume"},
		{"a script", "suspend", `{}`, []string{asJSON, "Authorization: Bearer " + secret}, 200, "", "suspend"},
		{"nobody", "suspend", `{}`, []string{asJSON, own, token}, 401, "sign in", ""},
		{"no page's token", "suspend", `{}`, []string{cookie, asJSON, own}, 403, "own page", ""},
		{"another session's page token", "suspend", `{}`, []string{cookie, asJSON, own, token + "x"}, 403, "own page", ""},
		{"no origin", "suspend", `{}`, []string{cookie, asJSON, token}, 403, "own page", ""},
		{"another origin", "suspend", `{}`, []string{cookie, asJSON, token, "Origin: http://evil.example"}, 403, "own page", ""},
		{"a form", "suspend", `{}`, []string{cookie, "Content-Type: text/plain", own, token}, 415, "application/json", ""},
		{"a misspelt word", "promote", `{"forse":true}`, []string{cookie, asJSON, own, token}, 400, "forse", ""},
		{"switch to nowhere", "switch", `{}`, []string{cookie, asJSON, own, token}, 409, "say where", ""},
		{"unknown", "format", `{}`, []string{cookie, asJSON, own, token}, 404, "no such order", ""},
		{"too long", "switch", `{"to":"` + strings.Repeat("x", maxBodyBytes) + `"}`, []string{cookie, asJSON, own, token}, 400, "too large", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := a.given()
			code, body, _ := ask(t, "POST", at+"/v1/order/"+tt.order, tt.body, tt.headers...)
			if code != tt.code || !strings.Contains(body, tt.says) {
				t.Errorf("%d: %s; want %d and %q", code, body, tt.code, tt.says)
			}
			want := before
			if tt.given != "" {
				want = append(want, tt.given)
			}
			if got := a.given(); !slices.Equal(got, want) {
				t.Errorf("orders %q, want %q", got, want)
			}
		})
	}
	a.mu.Lock()
	a.refuse = errRefused
	a.mu.Unlock()
	if code, body, _ := ask(t, "POST", at+"/v1/order/resume", `{}`, cookie, asJSON, own, token); code != 409 || !strings.Contains(body, "refused: not now; try later") {
		t.Errorf("what the agent refuses: %d %s", code, body)
	}
}

func TestNoOrdersUnlessAsked(t *testing.T) {
	a := newFakeAgent()
	at := serve(t, a, withToken)
	code, body, _ := ask(t, "POST", at+"/v1/order/suspend", `{}`, "Authorization: Bearer "+secret, "Content-Type: application/json")
	if code != 403 || !strings.Contains(body, "--http-control") || len(a.given()) != 0 {
		t.Errorf("%d %s %q", code, body, a.given())
	}
	o := DefaultOptions()
	o.Control = true
	if _, err := NewServer(a, o); !errors.Is(err, ErrOpenControl) {
		t.Errorf("orders from everybody: %v", err)
	}
}
