package mirror

// Role of a volume.
type Role uint8

// A primary is fed by its front, a secondary by the data port.
const (
	RolePrimary   Role = 1
	RoleSecondary Role = 2
)

// String returns the role's name as the operator sees it.
func (r Role) String() string {
	switch r {
	case RolePrimary:
		return "primary"
	case RoleSecondary:
		return "secondary"
	}
	return "unknown"
}
