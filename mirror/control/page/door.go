package page

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	cookieName   = "mirror-agent"
	sessionTime  = 12 * time.Hour
	pageTokenKey = "X-Page-Token" // header of an order
	wrongPause   = 500 * time.Millisecond
	maxWrong     = 4 // that wait for their answer at once
)

// door says who may look on, and which orders come from our own page.
type door struct {
	token        func() (string, error)
	certificates bool
	key          [32]byte      // of this run: sessions end with it
	wrong        chan struct{} // a slot for each wrong token that waits for its answer
	now          func() time.Time
}

func newDoor(o *Options) *door {
	d := &door{token: o.Token, certificates: o.Certificates, wrong: make(chan struct{}, maxWrong), now: time.Now}
	rand.Read(d.key[:]) // never fails
	return d
}

// knows says whether a request may see the agent.
func (d *door) knows(r *http.Request) bool {
	if d.certificates && (r.TLS == nil || len(r.TLS.VerifiedChains) == 0) {
		return false
	}
	if d.token == nil {
		return true
	}
	if word, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return d.right(word)
	}
	c, err := r.Cookie(cookieName)
	if err != nil {
		return false
	}
	until, sum, ok := strings.Cut(c.Value, ".")
	if !ok {
		return false
	}
	seconds, err := strconv.ParseInt(until, 36, 64)
	if err != nil || d.now().Unix() >= seconds {
		return false
	}
	want, err := d.seal("session", until)
	return err == nil && hmac.Equal([]byte(sum), []byte(want))
}

// right says whether this is the token as it is now.
func (d *door) right(word string) bool {
	token, err := d.token()
	if err != nil {
		return false
	}
	a, b := sha256.Sum256([]byte(word)), sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// seal binds a text to this run and to the token as it is now: a new token ends all sessions.
func (d *door) seal(purpose, text string) (string, error) {
	token := ""
	if d.token != nil {
		var err error
		if token, err = d.token(); err != nil {
			return "", err
		}
	}
	m := hmac.New(sha256.New, d.key[:])
	fmt.Fprintf(m, "%s\x00%s\x00%x", purpose, text, sha256.Sum256([]byte(token)))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil)), nil
}

// session makes the cookie of a browser that has shown the token.
func (d *door) session(secure bool) (*http.Cookie, error) {
	until := strconv.FormatInt(d.now().Add(sessionTime).Unix(), 36)
	sum, err := d.seal("session", until)
	return &http.Cookie{
		Name: cookieName, Value: until + "." + sum, Path: "/", MaxAge: int(sessionTime.Seconds()),
		HttpOnly: true, Secure: secure, SameSite: http.SameSiteStrictMode,
	}, err
}

// pageToken is what the page of this request's session gets, and shows with every order.
func (d *door) pageToken(r *http.Request) (string, error) {
	who := ""
	if c, err := r.Cookie(cookieName); err == nil {
		who = c.Value
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		who += "\x00" + string(r.TLS.PeerCertificates[0].Raw)
	}
	return d.seal("page", who)
}

// ours says whether an order is of our own page, or of a script that shows the token: nothing that another site can make a browser
// send.
func (d *door) ours(r *http.Request) bool {
	if d.token != nil && strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		return true // knows has looked at it; a browser sends none by itself
	}
	want, err := d.pageToken(r)
	return err == nil && sameOrigin(r) && hmac.Equal([]byte(r.Header.Get(pageTokenKey)), []byte(want))
}

// sameOrigin: browsers say with every POST which site's page it is from.
func sameOrigin(r *http.Request) bool {
	origin, err := url.Parse(r.Header.Get("Origin"))
	if err != nil || origin.Host != r.Host || r.Host == "" {
		return false
	}
	if r.TLS != nil {
		return origin.Scheme == "https"
	}
	return origin.Scheme == "http"
}

// nameIsOurs keeps out pages of a site whose name was made to lead here (DNS rebinding): without TLS, which proves the name, only
// addresses and localhost are good.
func nameIsOurs(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	_, err = netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost")
}

// login takes the form of login.html.
func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	d := s.door
	if d.token == nil || !sameOrigin(r) {
		s.refuse(w, http.StatusForbidden, "sign in from the page itself")
		return
	}
	if !d.right(strings.TrimSpace(r.PostFormValue("token"))) {
		select {
		case d.wrong <- struct{}{}:
			defer func() { <-d.wrong }()
		default:
			s.refuse(w, http.StatusTooManyRequests, "too many wrong tokens at once, try again in a moment")
			return
		}
		select {
		case <-time.After(wrongPause):
		case <-r.Context().Done():
		}
		s.options.Log.Warn().Str("peer", r.RemoteAddr).Msg("the page was shown a wrong token")
		page, err := fs.ReadFile(embedded, "assets/login.html")
		if err != nil {
			panic(err) // it is in this program
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, strings.Replace(string(page), `<p id="wrong" hidden>`, `<p id="wrong" role="alert">`, 1))
		return
	}
	cookie, err := d.session(r.TLS != nil)
	if err != nil {
		s.refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	http.SetCookie(w, cookie)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Server) refuse(w http.ResponseWriter, code int, why string) {
	s.reply(w, code, map[string]string{"error": why})
}

func (s *Server) reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.options.Log.Debug().Err(err).Msg("a browser went away before its answer")
	}
}
